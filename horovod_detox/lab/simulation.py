"""A job of p ranks in one process: every group's gradient once, copied, corrupted, aggregated.

Votes, rules, attacks and the account of faults are those of a real job; the only thing simulated is
that the ranks of a group compute the same gradient, which here is computed once.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

from horovod_detox import attacks
from horovod_detox.arrays.namespaces import like, to_numpy
from horovod_detox.drill import CopyDrill, stack_numbers
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.history import History
from horovod_detox.lab.datasets import CLASSES, train_and_test
from horovod_detox.lab.models import MODELS
from horovod_detox.lab.run import Run
from horovod_detox.packing.torch import COMPRESSORS, packing_of
from horovod_detox.vote.groups import group_seeds
from horovod_detox.vote.ledger import Ledger

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class StepRecord:
    """What happened in one step.

    Attributes:
        step: its number, from 0.
        loss: the mean of the groups' honest losses.
        faulty: the ranks that the attack took.
        dissenters, abstentions, non_finite: as in `vote.report.Event`.
        gradient_seconds: to compute one rank's gradient, on average.
        aggregation_seconds: to vote on and aggregate the copies of all ranks.
        seconds: of the whole step.
    """

    step: int
    loss: float
    faulty: tuple[int, ...]
    dissenters: tuple[int, ...]
    abstentions: tuple[int, ...]
    non_finite: tuple[int, ...]
    gradient_seconds: float
    aggregation_seconds: float
    seconds: float


class Simulation:
    """The training that a run describes, step by step.

    Attributes:
        run: the description.
        plan: groups and rule.
        model: what is trained.

    Raises:
        ValueError: when the settings do not fit the ranks, or each other.
    """

    def __init__(self, run: Run) -> None:
        torch.set_num_threads(run.threads)
        self.run = run
        self.plan = run.detox.plan(run.ranks)
        groups = self.plan.groups
        if run.compression == "sign":
            self.plan.check_signs()
        given = Path(run.data) if run.data else None
        train_set, self._test_set = train_and_test(run.dataset, given)

        torch.manual_seed(run.seed)
        self._device = _device(run.device)
        self.model = MODELS[run.model_name](CLASSES[run.dataset]).to(self._device)
        if run.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if run.gradients == "vmap" and any(True for _ in self.model.buffers()):
            raise ValueError(
                f"gradients = 'vmap' cannot train the BatchNorm of {run.model_name}: use 'each'"
            )
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), run.lr, run.sgd_momentum, weight_decay=run.weight_decay
        )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, run.steps)
        self._scheduler = cosine if run.schedule == "cosine" else None

        named_parameters = list(self.model.named_parameters())[::-1]  # as in a real job
        self._packing = packing_of(named_parameters, COMPRESSORS[run.compression])
        self._history = History(self.plan, Ledger(groups, logs=False))
        batch_size = run.group_batch(len(groups))
        self._groups = [
            _Group(g, len(groups), train_set, batch_size, run.seed, self.model, self._device)
            for g in range(len(groups))
        ]
        self._everyone = _RandomState(run.seed, self._device)
        self._attack = attacks.from_spec(run.attack) if run.attack else None
        if isinstance(self._attack, attacks.FlipState):
            raise ValueError(
                f"attack = {run.attack!r}: no rank of a simulation holds anything by itself; have "
                "it in a job: python -m horovod_detox --attack, or HOROVOD_DETOX_ATTACK"
            )
        self._drills = (
            [CopyDrill(self._attack, rank, self.plan) for rank in range(run.ranks)]
            if self._attack
            else []
        )

    @property
    def steps_done(self) -> int:
        """Return the number of steps so far."""
        return self._history.step

    def step(self) -> StepRecord:
        """Train one step.

        Raises:
            NoMajority: when too many groups lost their majority.
        """
        step, groups = self.steps_done, self.plan.groups
        faulty = self._attack.faulty_ranks(step, groups) if self._attack else ()
        start = time.perf_counter()
        batches = {g: group.next_batch() for g, group in enumerate(self._groups)}
        poisoned = self._poisoned(batches, faulty)
        honest, losses = self._gradients(batches)
        computed = time.perf_counter()
        copies = [honest[groups.of(rank)] for rank in range(groups.world_size)]
        for rank in faulty if poisoned else ():
            copies[rank] = poisoned[groups.of(rank)]
        copies = self._corrupted(copies, faulty)
        corrupted = time.perf_counter()
        layout = self._packing.layout
        outcome = aggregate_copies(
            self._history.plan_now(), layout.buffers, copies, self._history.memory(layout)
        )
        self._history.record(outcome, layout)
        aggregated = time.perf_counter()
        self._packing.unpack(outcome.update)
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        return StepRecord(
            step,
            float(torch.stack(losses).mean()),
            faulty,
            outcome.verdict.dissenters,
            outcome.verdict.abstentions,
            outcome.non_finite,
            (computed - start) / (len(honest) + len(poisoned)),
            aggregated - corrupted,
            time.perf_counter() - start,
        )

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of the test data that is classified right."""
        self.model.eval()
        with self._groups[0].present(self.model, keep=False):
            right = sum(
                int((self.model(self._placed(images)).argmax(dim=1).cpu() == labels).sum())
                for images, labels in DataLoader(self._test_set, batch_size=1000)
            )
        return right / len(self._test_set)

    def state(self) -> dict[str, Any]:
        """Return all that the following steps depend on, in tensors, numbers and containers."""
        history = self._history.state()
        means = {
            words: {group: torch.as_tensor(mean) for group, mean in of_groups.items()}
            for words, of_groups in history["means"].items()
        }
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict() if self._scheduler else None,
            "history": history | {"means": means},
            "groups": [(group.random.state, group.buffers) for group in self._groups],
            "random": self._everyone.state,
            "drills": [
                [[like(self._packing.update, past) for past in liar.past] for liar in each.liars]
                for each in self._drills
            ],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self._history.load_state(state["history"])
        self._everyone.state = state["random"]
        for group, (random, buffers) in zip(self._groups, state["groups"], strict=True):
            group.go_to(self.steps_done)
            group.random.state, group.buffers = random, buffers
        for each, pasts in zip(self._drills, state["drills"], strict=True):
            each.remember([[to_numpy(past) for past in kept] for kept in pasts])

    def _gradients(
        self, batches: Mapping[int, Batch], keep: bool = True
    ) -> tuple[dict[int, Any], list[torch.Tensor]]:
        """Return by group the copy that its honest members compute, and all losses.

        Args:
            batches: images and labels by group.
            keep: whether random numbers and statistics of batches are used up.
        """
        self.model.train()
        if self.run.gradients == "vmap":
            return self._all_at_once(batches, keep)
        copies, losses = {}, []
        for group, (images, labels) in batches.items():
            with self._groups[group].present(self.model, keep):
                self._optimizer.zero_grad()
                loss = cross_entropy(self.model(self._placed(images)), labels.to(self._device))
                loss.backward()
            copies[group] = self._packing.pack().clone()
            losses.append(loss.detach())
        return copies, losses

    def _all_at_once(
        self, batches: Mapping[int, Batch], keep: bool
    ) -> tuple[dict[int, Any], list[torch.Tensor]]:
        """Return what `_gradients` does, from one pass over all batches."""

        def loss_of(parameters: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            outputs = torch.func.functional_call(self.model, parameters, (images,))
            return cross_entropy(outputs, labels)

        per_batch = torch.func.vmap(
            torch.func.grad_and_value(loss_of), (None, 0, 0), randomness="different"
        )
        trained = dict(self.model.named_parameters())
        parameters = {name: parameter.detach() for name, parameter in trained.items()}
        images, labels = (torch.stack(parts) for parts in zip(*batches.values(), strict=True))
        with self._everyone.resumed(keep):
            gradients, losses = per_batch(parameters, self._placed(images), labels.to(self._device))
        copies = {}
        for i, group in enumerate(batches):
            for name, parameter in trained.items():
                parameter.grad = gradients[name][i]
            copies[group] = self._packing.pack().clone()
        return copies, list(losses)

    def _poisoned(self, batches: Mapping[int, Batch], faulty: Sequence[int]) -> dict[int, Any]:
        """Return by group the copy of members that train on other labels than they should."""
        if self._attack is None or not self._attack.poisons or not faulty:
            return {}
        labels = self._attack.labels
        flipped = {
            g: (batches[g][0], labels(batches[g][1])) for g in map(self.plan.groups.of, faulty)
        }
        return self._gradients(flipped, keep=False)[0]

    def _corrupted(self, copies: list[Any], faulty: Sequence[int]) -> list[Any]:
        """Return what the ranks send."""
        attack, step, layout = self._attack, self.steps_done, self._packing.layout
        sent = list(copies)
        if attack is None or not (faulty or attack.memory):
            return sent
        if attack.omniscient:  # all faulty ranks send the same
            everyone = stack_numbers(layout, copies)
            lie = self._drills[faulty[0]].corrupt(step, copies[faulty[0]], layout, everyone)
            for rank in faulty:
                sent[rank] = lie
            return sent
        for rank in range(len(copies)) if attack.memory else faulty:
            lie = self._drills[rank].corrupt(step, copies[rank], layout)
            sent[rank] = lie if rank in faulty else copies[rank]
        return sent

    def _placed(self, images: torch.Tensor) -> torch.Tensor:
        """Return images where and as the model expects them."""
        images = images.to(self._device)
        if self.run.channels_last and images.ndim == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.backends.cudnn.deterministic = True  # honest ranks of a group agree in every bit
    return torch.device(name)


class _RandomState:
    """A state of torch's random numbers, on the CPU and a device, that goes on in its turn."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        devices = dict.fromkeys([torch.device("cpu"), device])
        self.state = [torch.Generator(each).manual_seed(seed).get_state() for each in devices]

    @contextmanager
    def resumed(self, keep: bool = True) -> Iterator[None]:
        """Draw from this state; without `keep`, the next turn draws the same again."""
        outside = self._now()
        self._set(self.state)
        try:
            yield
            if keep:
                self.state = self._now()
        finally:
            self._set(outside)

    def _now(self) -> list[torch.Tensor]:
        on_device = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    def _set(self, state: Sequence[torch.Tensor]) -> None:
        torch.set_rng_state(state[0])
        for on_device in state[1:]:
            torch.cuda.set_rng_state(on_device, self._device)


class _Group:
    """What the ranks of a group have in common: data, random numbers, statistics of batches."""

    def __init__(
        self,
        group: int,
        num_groups: int,
        train_set: Any,
        batch_size: int,
        seed: int,
        model: torch.nn.Module,
        device: torch.device,
    ) -> None:
        self._sampler = DistributedSampler(train_set, num_groups, group, seed=seed)
        self._loader = DataLoader(train_set, batch_size, sampler=self._sampler)
        self._epoch, self._batches = -1, iter(())
        self.random = _RandomState(group_seeds(seed, group)[2], device)
        self.buffers = [buffer.clone() for buffer in model.buffers()]

    def next_batch(self) -> Batch:
        """Return the images and labels of the next step; an epoch follows the other."""
        with self.random.resumed():
            batch = next(self._batches, None)
            if batch is None:
                self._begin(self._epoch + 1)
                batch = next(self._batches)
        images, labels = batch
        return images, labels

    def go_to(self, step: int) -> None:
        """Make the batch of this step the next one."""
        epoch, done = divmod(step, len(self._loader))
        self._epoch, self._batches = epoch - 1, iter(())
        if done:
            self._begin(epoch)
            for _ in islice(self._batches, done):
                pass

    @contextmanager
    def present(self, model: torch.nn.Module, keep: bool = True) -> Iterator[None]:
        """Let a model be this group's; without `keep`, leave the group as it was."""
        with self.random.resumed(keep):
            for buffer, own in zip(model.buffers(), self.buffers, strict=True):
                buffer.copy_(own)
            yield
            if keep:
                self.buffers = [buffer.clone() for buffer in model.buffers()]

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._sampler.set_epoch(epoch)
        self._batches = iter(self._loader)

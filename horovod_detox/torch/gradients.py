"""From the last gradient of a backward pass to the update: when and how a model is exchanged."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch

from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange.step import NoMajority, Postponed
from horovod_detox.frontend.context import Engines
from horovod_detox.frontend.overlap import Overlap
from horovod_detox.packing.layout import Layout
from horovod_detox.packing.torch import Packing, SignPacking, packing_of
from horovod_detox.replicas.replicas import Held
from horovod_detox.torch import passes
from horovod_detox.torch.early import EarlyGradients
from horovod_detox.torch.replicas import holdings

_numbers = count()


class GradientExchange:
    """Watch the parameters of an optimizer and replace their gradients by the update.

    The exchange takes place at the end of a backward pass, before `backward()` returns. So
    clipping, GradScaler and closures see the update, on every rank. Where a batch has left
    parameters out, their gradients count as zero. When that is so in most groups, the pass is not
    the last of the step, and the exchange is postponed to the end of another, or to
    `synchronize()`. Large gradients leave part by part before, and the update comes part by part.

    Args:
        engines: makes the engines of this optimizer.
        named_parameters: the current (name, parameter) pairs of the optimizer.
        compression: of Horovod's kind: `compress` and `decompress`, element by element.
        passes: backward passes per step; gradients are summed locally until the last.
        factor: what the update is multiplied by.
        ranks: who exchanges.
        held: what this rank holds alike with others; None: that is not looked after.

    Attributes:
        number, ranks, together: see `passes.Exchange`.
    """

    def __init__(
        self,
        engines: Engines,
        named_parameters: Callable[[], list[tuple[str, torch.Tensor]]],
        compression: Any,
        passes: int,
        factor: float,
        ranks: Iterable[int],
        held: Held | None = None,
    ) -> None:
        self.number, self.ranks = next(_numbers), frozenset(ranks)
        self.together: set[Any] = set()
        self._engines = engines
        self._engine = engines.make_for_gradients(
            factor,
            skips=True,
            weights=self._weights,
            held=held,
        )
        self._failure: NoMajority | None = None
        self._holds_update = False
        self._loss_engine: Engine | None = None
        self._named_parameters = named_parameters
        self._compression = compression
        self._factor = factor
        self._delays: dict[torch.Tensor, int] = {}
        self._waiting: set[torch.Tensor] = set()
        self._hooks: dict[torch.Tensor, Any] = {}
        self._packing: Packing | SignPacking | None = None
        self._overlap: Overlap | None = None
        self._found_late: dict[torch.Tensor, int] = {}
        self._early = EarlyGradients()
        self._stepped_in: int | None = None
        self.set_passes(passes)
        self.watch()

    def _weights(self) -> Iterator[np.ndarray]:
        for _, parameter in self._named_parameters():
            yield parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()

    def set_passes(self, passes: int) -> None:
        """Set the number of backward passes per step."""
        self._passes = passes
        self.reset()

    def reset(self) -> None:
        """Forget what was computed since the last step."""
        self._abandon()
        passes.forget(self)
        self._delays = dict.fromkeys(self._delays, self._passes)
        self._waiting = set(self._delays)
        self._exchanged = self._is_postponed = False
        self._to_be_skipped = False

    def watch(self, is_late: bool = False) -> None:
        """Follow the optimizer's parameters: which there are, and of which shape and dtype.

        Args:
            is_late: whether the gradients of new ones may be there already.
        """
        named = self._named_parameters()
        gone = self._delays.keys() - {parameter for _, parameter in named}
        for parameter in gone:
            self._hooks.pop(parameter).remove()
            del self._delays[parameter]
            self._waiting.discard(parameter)
        delay = max(1, min(self._delays.values(), default=self._passes))
        for _, parameter in named:
            if parameter.requires_grad and parameter not in self._delays:
                on_gradient = partial(self._on_gradient, parameter)
                self._hooks[parameter] = parameter.register_post_accumulate_grad_hook(on_gradient)
                self._delays[parameter] = delay
                self._waiting.add(parameter)
                if is_late:
                    self._found_late[parameter] = delay
        watched = [pair for pair in named if pair[1] in self._delays]
        if self._packing is None or not self._packing.fits(watched):
            self._abandon()
            self._packing = packing_of(watched, self._compression)
            self._overlap = self._overlap_of(self._packing)

    @property
    def started(self) -> bool:
        """Return whether a gradient was computed since the last step."""
        return passes.has_touched(self) or any(
            delay != self._passes for delay in self._delays.values()
        )

    @property
    def pending(self) -> bool:
        """Return whether gradients of a whole step await their exchange."""
        return any(delay <= 0 for delay in self._delays.values()) and not self._exchanged

    def take_update(self) -> None:
        """Let the gradients, which are the update of an exchange, be used by a step.

        Raises:
            RuntimeError: when they are not, or others came since.
        """
        if not self._holds_update:
            raise RuntimeError(
                "step() in skip_synchronize(), but the gradients have not been exchanged: call "
                "synchronize() before, or step() without skip_synchronize()"
            )
        self.reset()

    def count_step(self) -> None:
        """Note that the optimizer has stepped."""
        tally = self._engine.tally
        tally.steps = (tally.steps or 0) + 1

    def take_failure(self) -> NoMajority | None:
        """Return why the step after the latest exchange is to be skipped, once; None: it is not."""
        failure, self._failure = self._failure, None
        return failure

    def synchronize(self) -> None:
        """Replace the gradients by the update, unless that was done in the backward pass."""
        while not self._exchanged:
            self.watch()
            with suppress(Postponed):  # the other ranks are in a backward pass
                self._run(is_complete=True)
        self.reset()
        self._stepped_in = passes.number()

    def clear(self) -> None:
        """Forget what was computed since the last step, as the gradients are zeroed.

        Raises:
            AssertionError: when gradients of a whole step await their exchange.
        """
        if self.pending:
            raise AssertionError(
                "optimizer.zero_grad() was called after loss.backward() but before "
                "optimizer.step() or optimizer.synchronize(). This is prohibited as it can "
                "cause a race condition."
            )
        self.reset()
        self.watch()

    def agree_on(self, loss: Any) -> Any:
        """Return the aggregate of the ranks' losses, of the same kind as `loss`."""
        if loss is None:
            return None
        if self._loss_engine is None:
            self._loss_engine = self._engines.make_for_losses()
        layout = Layout((("loss of the closure", (1,), "float64"),))
        value = torch.as_tensor(loss).detach().to("cpu", torch.float64).reshape(1)
        outcome = self._loss_engine.exchange(value.view(torch.int64), layout)
        update = outcome.update.view(torch.float64)
        if isinstance(loss, torch.Tensor):
            return update.to(loss).reshape(loss.shape)
        return update.item()

    def count(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Count the gradients of a pass; return whether a parameter needs no more in this step."""
        known = [parameter for parameter in parameters if parameter in self._delays]
        for parameter in known:
            self._count_down(parameter)
        return any(self._delays[parameter] == 0 for parameter in known)

    def _count_down(self, parameter: torch.Tensor) -> None:
        self._delays[parameter] = max(0, self._delays[parameter] - 1)
        if self._delays[parameter] == 0:
            self._waiting.discard(parameter)

    def end_pass(self) -> bool:
        """Exchange at the end of a backward pass; return whether that took place."""
        if self._exchanged:
            return False
        self.watch(is_late=True)
        self._count_those_found_late()
        try:
            self._run(self._is_complete())
        except Postponed:
            self._is_postponed = True
            passes.postpone(self)
            self._early.end()
        if changed := self._early.end():
            names = ", ".join(map(self._name_of, changed))
            raise RuntimeError(
                f"the gradients of {names} were changed in the backward pass after they were sent: "
                "the update lacks the change. Change a gradient in a hook of its parameter "
                "(register_post_accumulate_grad_hook), or set Detox(overlap_bytes=0)"
            )
        return self._exchanged

    def _count_those_found_late(self) -> None:
        """Count gradients of this pass that came before their parameters were watched."""
        for parameter, delay in self._found_late.items():
            if parameter.grad is not None and self._delays.get(parameter) == delay:
                self._count_down(parameter)
        self._found_late.clear()

    def _is_complete(self) -> bool:
        """Return whether all gradients of a step are there."""
        has_any = any(delay <= 0 for delay in self._delays.values())
        return has_any and not any(waiting.requires_grad for waiting in self._waiting)

    def _run(self, is_complete: bool) -> None:
        """Exchange the gradients as they are.

        Args:
            is_complete: whether they are all there.

        Raises:
            Postponed: on every rank, when too many lack some.
        """
        assert self._packing is not None
        layout = self._packing.layout
        if not layout.parameters:
            raise ValueError("no parameter of the optimizer requires a gradient: nothing to train")
        if self._overlap is not None and not self._engine.presence.some_have_joined:
            outcome = self._overlap.finish(is_complete)
        else:
            copy, update = self._packing.pack(), self._packing.update
            outcome = self._engine.exchange(copy, layout, update, is_complete)
            self._packing.unpack(outcome.update, self._factor)
        holdings.batches.clear()
        self._exchanged = self._holds_update = True
        self._failure = outcome.failure
        self._to_be_skipped = not outcome.is_finite

    def _overlap_of(self, packing: Packing | SignPacking) -> Overlap | None:
        """Return how to exchange the gradient part by part; None: as a whole."""
        engine = self._engine
        if isinstance(engine, DrilledEngine) or isinstance(packing, SignPacking):
            return None
        return (
            Overlap(engine, packing, self._factor)
            if len(engine.parts(packing.layout)) > 1
            else None
        )

    def _on_gradient(self, parameter: torch.Tensor, _: torch.Tensor) -> None:
        """Let a gradient count at the end of the pass; a large one may leave at once."""
        if self._to_be_skipped:
            self.reset()
        self._refuse(parameter)
        self._holds_update = False
        passes.touch(self, parameter)
        if self._overlap is not None and self._delays[parameter] == 1:
            self._let_leave(parameter)

    def _let_leave(self, parameter: torch.Tensor) -> None:
        """Send a gradient during the pass, if nothing changes it any more."""
        if self._early.is_new_pass():
            if self._early.any_left:  # in a pass that failed
                self._abandon()
            self.watch(is_late=True)
            self._early.begin(self._delays)
        all_take_part = not self._engine.presence.some_have_joined
        if parameter not in self._delays or self._overlap is None or not all_take_part:
            return
        if self._early.may_leave(parameter):
            self._early.leaves(parameter)
            self._overlap.add(parameter)

    def _refuse(self, parameter: torch.Tensor) -> None:
        """Raise an error if a gradient comes when none can count."""
        if parameter.grad is not None and parameter.grad.requires_grad:
            raise AssertionError(
                "gradients of gradients cannot be exchanged: call backward() without create_graph"
            )
        if self._stepped_in == passes.number():
            raise RuntimeError(
                "the optimizer stepped in a hook of this backward pass, before the gradient of "
                f"{self._name_of(parameter)} was there. Register hooks that step after "
                "DistributedOptimizer was made, an optimizer for each parameter; or call step() "
                "after backward()"
            )
        is_spare = self._is_postponed and not self._exchanged and self._is_complete()
        if self._delays[parameter] <= 0 and not is_spare:  # which the others lack
            name = self._name_of(parameter)
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before call "
                f"to step(): that of {name} came in another backward pass. If that is of another "
                f"loss, which is not to train {name}, call requires_grad_(False), detach() or "
                "backward(inputs=...), or step() before it. Increase backward_passes_per_step to "
                "accumulate gradients locally."
            )
        if self._exchanged:
            raise RuntimeError(
                f"the gradient of {self._name_of(parameter)} came after the exchange of this step: "
                "most ranks of some group had all of theirs in an earlier backward pass. Call "
                "backward() equally often on every rank"
            )
        if self._early.has_left(parameter):
            raise RuntimeError(
                f"the gradient of {self._name_of(parameter)} was computed again in one backward "
                "pass, after it was sent, as by a reentrant checkpoint: use "
                "checkpoint(use_reentrant=False), or Detox(overlap_bytes=0)"
            )

    def _name_of(self, parameter: torch.Tensor) -> str:
        return next(
            (name for name, p in self._named_parameters() if p is parameter),
            f"a parameter of shape {tuple(parameter.shape)}",
        )

    def _abandon(self) -> None:
        """End an exchange that was begun with gradients that nobody wants any more."""
        self._early.end()
        if self._overlap is not None:
            self._overlap.abandon()

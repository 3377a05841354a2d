"""What the examples share: flags, lies in plain Horovod, and the closing table."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import xxhash
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import horovod_detox.torch as hvd
from horovod_detox import attacks
from horovod_detox.arrays import like, to_numpy
from horovod_detox.attacks import Attack, Drill
from horovod_detox.groups import Groups

VARIABLE = "HOROVOD_DETOX_ATTACK"
DEMO_ATTACK = "reverse(scale=100)@4,5"


def flags(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser of the flags that every example has; `defaults` are those of the example."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--group-size", type=int, default=3, metavar="R", help="ranks that compute the same batch")
    add("--inner", default="mean", metavar="RULE", help="aggregator inside a bucket of votes")
    add("--outer", default="median", metavar="RULE", help="aggregator of the buckets' results")
    add("--buckets", type=int, metavar="N", help="number of buckets; default: one for every vote")
    add("--method", choices=("detox", "horovod"), default="detox", help="horovod: plain averaging")
    add("--attack", type=_attack, metavar="SPEC", help=f'what faulty ranks do: "{DEMO_ATTACK}"')
    add("--compare", action="store_true", help="Horovod attacked, DETOX attacked, DETOX in peace")
    add("--epochs", type=int, metavar="N", help="default: %(default)s")
    add("--batch-size", type=int, metavar="N", help="samples per group; default: %(default)s")
    add("--lr", type=float, help="learning rate; default: %(default)s")
    add("--seed", type=int, default=0, help="of weights, order of the data, dropout")
    parser.set_defaults(attack=os.environ.get(VARIABLE), **defaults)
    return parser


def _attack(spec: str) -> str:
    """Check the text of an attack, and return it."""
    try:
        attacks.from_spec(spec)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return spec


def attack_of(args: argparse.Namespace) -> Attack | None:
    """Return the attack that the flags ask for."""
    if args.attack and hvd.size() == 1:
        sys.exit("nobody outvotes the only rank: give an attack to a job, as horovodrun -np 6")
    return attacks.from_spec(args.attack) if args.attack else None


def poison_of(args: argparse.Namespace) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what this rank makes of the labels of a batch: flips them, if that is the attack."""
    attack = attack_of(args)
    if attack is None:
        return lambda labels: labels
    drill, steps = Drill(attack, hvd.rank(), groups()), count()
    return lambda labels: drill.labels(next(steps), labels)


def lie(
    parameters: Iterable[torch.Tensor], attack: Attack | None, rank: int, groups: Groups
) -> None:
    """Let an attack corrupt this rank's gradients before plain Horovod sees them.

    Our own `DistributedOptimizer` takes `attack=` instead. Here the attack acts on each parameter
    by itself, once per backward pass.
    """
    if attack is None:
        return
    if attack.omniscient:
        sys.exit(f"{type(attack).__name__} must see all gradients: plain Horovod shows it none")
    for parameter in parameters:
        parameter.register_hook(_liar(Drill(attack, rank, groups)))


def _liar(drill: Drill) -> Callable[[torch.Tensor], torch.Tensor]:
    steps = count()

    def corrupt(gradient: torch.Tensor) -> torch.Tensor:
        copy = drill.corrupt(next(steps), to_numpy(gradient).flatten())
        return like(gradient, copy).view_as(gradient)

    return corrupt


def groups() -> Groups:
    """Gather which ranks are in which group."""
    group_of = hvd.allgather_object(hvd.group())
    members = [[] for _ in range(hvd.num_groups())]
    for rank, group in enumerate(group_of):
        members[group].append(rank)
    return Groups(tuple(map(tuple, members)))


def progress(steps: Iterable[Any], label: str, total: int | None = None) -> tqdm:
    """Show a progress bar on rank 0, and above it what the package logs."""
    logging.getLogger("horovod_detox").handlers = [_Log()]
    return tqdm(steps, label, total, disable=hvd.rank() != 0, mininterval=0.5)


def say(words: object) -> None:
    """Print on rank 0, above the progress bar."""
    if hvd.rank() == 0:
        tqdm.write(str(words))


class _Log(logging.Handler):
    """Say what is logged, once instead of once per rank."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def weights_digest(model: torch.nn.Module) -> str:
    """Return a digest of the bits of all parameters.

    Buffers do not count: BatchNorm's statistics are those of a group's own batches.
    """
    digest = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Run:
    """How a training ended, the same on every rank.

    Attributes:
        method: `detox` or `horovod`.
        attack: the text of the attack, or None.
        accuracy: on the test data, 0 to 1.
        digests: of the weights of every rank.
        liars: the ranks that lied to DETOX.
        named: the ranks that DETOX names as faulty.
    """

    method: str
    attack: str | None
    accuracy: float
    digests: tuple[str, ...]
    liars: tuple[int, ...] = ()
    named: tuple[int, ...] = ()


def conclude(args: argparse.Namespace, model: torch.nn.Module, accuracy: float) -> Run:
    """Collect how a training ended on all ranks."""
    report, attack = hvd.fault_report(), attack_of(args)
    liars: set[int] = set()
    if attack is not None:
        members = groups()
        liars.update(*(attack.faulty_ranks(step, members) for step in range(report.steps)))
    digests = hvd.allgather_object(weights_digest(model))
    named = tuple(sorted(report.dissents))
    return Run(args.method, args.attack, accuracy, tuple(digests), tuple(sorted(liars)), named)


def compare(args: argparse.Namespace, train: Callable[[argparse.Namespace], Run]) -> list[Run]:
    """Train with plain Horovod and with DETOX under the same attack, then with DETOX in peace."""
    os.environ.pop(VARIABLE, None)
    attack = args.attack or DEMO_ATTACK
    settings = [
        {"method": "horovod", "attack": attack},
        {"method": "detox", "attack": attack},
        {"method": "detox", "attack": None},
    ]
    return [train(argparse.Namespace(**vars(args) | changes)) for changes in settings]


def verdict(attacked: Run, reference: Run) -> tuple[bool, str]:
    """Judge the promise of DETOX: whether it held, and what was found in words."""
    ranks = len(attacked.digests)
    same = len({*attacked.digests, *reference.digests}) == 1
    right = attacked.named == attacked.liars and not reference.named
    words = [
        f"The weights are bit-identical on all {ranks} ranks, with the attack and without it."
        if same
        else "The weights DIFFER with the attack and without it.",
        f"DETOX named exactly the ranks that lied: {_list(attacked.named)}."
        if right
        else f"DETOX named {_list(attacked.named)}, but {_list(attacked.liars)} lied.",
    ]
    return same and right, "\n".join(words)


def close(args: argparse.Namespace, runs: Sequence[Run]) -> int:
    """Print the closing table on rank 0, with the verdict on a comparison; return the exit code."""
    kept, words = verdict(*runs[1:]) if args.compare else (True, "")
    if hvd.rank() == 0:
        console = Console(width=78, highlight=False)
        console.print(_table(runs), words)
    hvd.barrier()  # a rank that leaves with an error ends the job, and rank 0 has to speak first
    return 0 if kept else 1


def _table(runs: Sequence[Run]) -> Table:
    title = f"ranks: {hvd.size()}, groups: {hvd.num_groups()}"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for header in ("method", "attack", "accuracy", "weights", "faulty"):
        table.add_column(header, overflow="fold")
    for run in runs:
        table.add_row(
            {"detox": "DETOX", "horovod": "Horovod"}[run.method],
            run.attack or "none",
            f"{run.accuracy:8.1%}",
            run.digests[0][:10] if len(set(run.digests)) == 1 else "ranks differ",
            _list(run.named) if run.method == "detox" else "cannot tell",
        )
    return table


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) or "none"

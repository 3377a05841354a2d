"""What the examples of all frameworks share: flags, drills, and the closing table."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from horovod_detox import attacks, process
from horovod_detox.attacks import Attack, FaultyRank
from horovod_detox.vote.groups import Groups

VARIABLE = "HOROVOD_DETOX_ATTACK"
DEMO_ATTACK = "reverse(scale=100)@4,5"
NAMES = {"detox": "DETOX", "horovod": "Horovod"}
"""Of the methods."""


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


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) or "none"


class Job:
    """The job that an example runs in.

    Args:
        hvd: the frontend: `horovod_detox.torch` or `horovod_detox.tensorflow`.
        digest: returns a digest of the bits of a model's parameters.
    """

    def __init__(self, hvd: Any, digest: Callable[[Any], str]) -> None:
        self._hvd = hvd
        self._digest = digest

    def attack_of(self, args: argparse.Namespace) -> Attack | None:
        """Return the attack that the flags ask for."""
        if args.attack and self._hvd.size() == 1:
            sys.exit("nobody outvotes the only rank: give an attack to a job, as horovodrun -np 6")
        return attacks.from_spec(args.attack) if args.attack else None

    def poison_of(self, args: argparse.Namespace) -> Callable[[Any], Any]:
        """Return what this rank makes of a batch's labels: flips them, if that is the attack."""
        attack = self.attack_of(args)
        if attack is None:
            return lambda labels: labels
        liar, steps = FaultyRank(attack, self._hvd.rank(), self.groups()), count()
        return lambda labels: liar.labels(next(steps), labels)

    def groups(self) -> Groups:
        """Gather which ranks are in which group."""
        group_of = self._hvd.allgather_object(self._hvd.group(), name="group")
        members = [[] for _ in range(self._hvd.num_groups())]
        for rank, group in enumerate(group_of):
            members[group].append(rank)
        return Groups(tuple(map(tuple, members)))

    def progress(self, steps: Iterable[Any], label: str, total: int | None = None) -> tqdm:
        """Show a progress bar on rank 0 in a terminal, which no rank under horovodrun has.

        What the package logs is printed above it.
        """
        logging.getLogger("horovod_detox").handlers = [_Log(self)]
        return tqdm(steps, label, total, disable=self._hvd.rank() != 0 or None, mininterval=0.5)

    def say(self, words: object) -> None:
        """Print on rank 0, above the progress bar."""
        if process.rank() == 0:  # also before Horovod is initialised
            tqdm.write(str(words))

    def conclude(self, args: argparse.Namespace, model: Any, accuracy: float) -> Run:
        """Collect how a training ended on all ranks."""
        report, attack = self._hvd.fault_report(), self.attack_of(args)
        liars: set[int] = set()
        if attack is not None:
            members = self.groups()
            liars.update(*(attack.faulty_ranks(step, members) for step in range(report.steps)))
        digests = self._hvd.allgather_object(self._digest(model), name="digest")
        named = tuple(sorted(report.dissents))
        return Run(args.method, args.attack, accuracy, tuple(digests), tuple(sorted(liars)), named)

    def run(self, args: argparse.Namespace, train: Callable[[argparse.Namespace], Run]) -> int:
        """Train as the flags say, or in all three ways; print the table; return the exit code."""
        runs = self._compare(args, train) if args.compare else [train(args)]
        kept, words = verdict(*runs[1:]) if args.compare else (True, "")
        if self._hvd.rank() == 0:
            console = Console(width=78, highlight=False)
            console.print()
            console.print(self._table(runs), words)
        # A rank that leaves with an error ends the job, and rank 0 has to speak first.
        self._hvd.allgather_object(None, name="end")
        return 0 if kept else 1

    def _compare(
        self, args: argparse.Namespace, train: Callable[[argparse.Namespace], Run]
    ) -> list[Run]:
        """Train with plain Horovod and DETOX under the same attack, then with DETOX in peace."""
        os.environ.pop(VARIABLE, None)
        attack = args.attack or DEMO_ATTACK
        settings = [
            {"method": "horovod", "attack": attack},
            {"method": "detox", "attack": attack},
            {"method": "detox", "attack": None},
        ]
        runs = []
        for changes in settings:
            self.say(f"{NAMES[changes['method']]}, attack: {changes['attack'] or 'none'}")
            runs.append(train(argparse.Namespace(**vars(args) | changes)))
        return runs

    def _table(self, runs: Sequence[Run]) -> Table:
        title = f"ranks: {self._hvd.size()}, groups: {self._hvd.num_groups()}"
        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
        for header in ("method", "attack", "accuracy", "weights", "faulty"):
            table.add_column(header, overflow="fold")
        for run in runs:
            table.add_row(
                NAMES[run.method],
                run.attack or "none",
                f"{run.accuracy:8.1%}",
                run.digests[0][:10] if len(set(run.digests)) == 1 else "ranks differ",
                _list(run.named) if run.method == "detox" else "cannot tell",
            )
        return table


class _Log(logging.Handler):
    """Say what is logged, once instead of once per rank."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def emit(self, record: logging.LogRecord) -> None:
        self._job.say(self.format(record))

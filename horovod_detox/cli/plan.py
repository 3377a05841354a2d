"""Compare settings for a job before it runs: what they tolerate, what they cost, what to choose."""

import argparse
import json
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from horovod_detox.config import Detox
from horovod_detox.planning.advice import advise, chance, percent
from horovod_detox.planning.comparison import (
    Candidate,
    Comparison,
    HostLoss,
    Job,
    Redundancy,
    compare,
)
from horovod_detox.planning.transients import Endurance, Faults

WIDTH = 80
"""Columns of the output when it is no terminal; all tables fit into them."""

UNBROKEN = "\ue000"
"""Stands for a space at which no line is broken, until the output is written."""

LEAST_SHARE = 0.0005
"""Outcomes with a smaller probability are not shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--ranks", type=int, required=True, metavar="P", help="number of ranks")
    add(
        "--byzantine", type=int, required=True, metavar="Q", help="number of faulty ranks to expect"
    )
    add(
        "--parameters",
        type=float,
        default=11e6,
        metavar="N",
        help="number of parameters of the model (default: 11e6, as ResNet-18 has)",
    )
    add(
        "--bytes-per-parameter",
        type=int,
        default=4,
        metavar="N",
        help="bytes of each parameter in a gradient that is sent (default: 4)",
    )
    add(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="samples per rank and step (default: 32)",
    )
    add(
        "--hosts",
        metavar="HOSTS",
        help="number of hosts, or hosts with their slots as for horovodrun: a:8,b:8",
    )
    add(
        "--fault-rate",
        type=float,
        metavar="X",
        help="chance that a transient fault hits a rank in a step; with --steps",
    )
    add("--steps", type=int, metavar="N", help="steps of the job; with --fault-rate")
    add(
        "--scrub-every",
        type=int,
        default=Detox.scrub_every,
        metavar="N",
        help=f"steps after which ranks compare what they hold (default: {Detox.scrub_every})",
    )
    add("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the comparison and the advice."""
    hosts = None if args.hosts is None else parse_hosts(args.hosts, args.ranks)
    job = Job(
        args.ranks,
        args.byzantine,
        args.parameters,
        args.bytes_per_parameter,
        args.batch_size,
        hosts,
        parse_faults(args.fault_rate, args.steps, args.scrub_every),
    )
    comparison = compare(job)
    if args.json:
        print(json.dumps({**asdict(comparison), "advice": advise(comparison)}, indent=2))
    else:
        _print(comparison)
    return 0


def parse_hosts(text: str, ranks: int) -> tuple[str, ...]:
    """Return the host of each rank, from the number of hosts or a list of hosts with slots.

    Raises:
        ValueError: when it is neither, or the hosts do not hold so many ranks.

    >>> parse_hosts("2", 5), parse_hosts("a:1,b:2", 3)
    (('host0', 'host0', 'host0', 'host1', 'host1'), ('a', 'b', 'b'))
    """
    if text.isascii() and text.isdigit():
        if not 1 <= int(text) <= ranks:
            raise ValueError(f"hosts = {text}: it must be from 1 to {ranks}, the number of ranks")
        return tuple(f"host{rank * int(text) // ranks}" for rank in range(ranks))
    hosts: list[str] = []
    for part in text.split(","):
        name, _, slots = part.strip().rpartition(":")
        if not name or not (slots.isascii() and slots.isdigit()):
            raise ValueError(f"hosts = {text!r} is neither a number nor a list such as a:8,b:8")
        hosts += [name] * int(slots)
    return tuple(hosts)


def parse_faults(rate: float | None, steps: int | None, scrub_every: int) -> Faults | None:
    """Return the transient faults; None: they were not asked for.

    Raises:
        ValueError: when one is given without the other, or out of bounds.
    """
    if rate is None and steps is None:
        return None
    if rate is None or steps is None:
        raise ValueError("--fault-rate and --steps belong together: give both")
    return Faults(rate, steps, scrub_every)


def _print(comparison: Comparison) -> None:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    with console.capture() as output:
        for sheet in _sheets(comparison):
            console.print(sheet.title, style="bold", markup=False)
            console.print(_table(sheet))
            for note in sheet.notes:
                console.print(_paragraph(note, console.width), markup=False)
            if sheet.notes:
                console.print()
            if sheet.objections:
                console.print("What does not fit, and why:")
            for objection in sheet.objections:
                console.print(_paragraph(objection, console.width, "- "), markup=False)
            if sheet.objections:
                console.print()
        for sentence in advise(comparison):
            console.print(_paragraph(sentence, console.width, "- "), markup=False)
    text = output.get().replace(UNBROKEN, " ")
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in text.splitlines())


@dataclass(frozen=True)
class _Sheet:
    """A table as it is printed, and what is said below it."""

    title: str
    header: Sequence[str]
    rows: Iterable[Sequence[object]]
    notes: Sequence[str] = ()
    objections: Sequence[str] = ()


def _table(sheet: _Sheet) -> Table:
    table = Table(*sheet.header, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in sheet.rows:
        table.add_row(*(_unbroken(str(cell)) for cell in row))
    return table


def _paragraph(text: str, width: int, bullet: str = "") -> str:
    return textwrap.fill(
        _unbroken(text),
        width,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _unbroken(text: str) -> str:
    """Return the text with no break inside of `59.7 %`, `x 1.0`, `44 MB` and `1: 37.2 %`."""
    return re.sub(r"(?<=\d) (?=%|MB)|(?<=x) (?=\d)|(?<=\d:) (?=\d)", UNBROKEN, text)


def _sheets(comparison: Comparison) -> Iterator[_Sheet]:
    job = comparison.job
    faulty = f"{job.byzantine} faulty of {job.ranks} ranks"
    yield _Sheet(
        f"What {faulty} do to groups of r",
        ["r", "groups", "at worst", "at random", "bad votes", "all intact"],
        map(_capture_row, comparison.redundancies),
        [
            "at worst: groups that the faulty ranks capture if they choose their places.",
            "at random: how many they capture at random places, and how likely that is.",
            "bad votes: captured groups to expect at random places.",
            "all intact: how likely it is that every group keeps its majority.",
        ],
    )
    yield _Sheet(
        f"What redundancy costs: gradients of {_megabytes(job.gradient_bytes)}",
        ["r", "batch", "variance", "samples", "compute", "received", "leaders", "memory"],
        map(_cost_row, comparison.redundancies),
        [
            f"batch, variance: of a step with {job.batch_size} samples per rank.",
            "samples, compute: of a rank, for the same batch as with r = 1: "
            f"{job.ranks * job.batch_size} samples.",
            "received: what a rank receives, and on average sends, in a step; and as a multiple of "
            "allreduce.",
            'leaders: the most that a rank receives with exchange="leaders".',
            "memory: of a rank, beside the model and the gradient.",
        ],
    )
    yield _Sheet(
        f"Which rules tolerate {faulty}",
        ["r", "rule", "tolerates", "at random", "at worst"],
        map(_rule_row, comparison.candidates),
        [
            "tolerates: the number of captured groups, whatever they send.",
            "at random: how likely it is that no more are captured.",
            f"at worst: whether Detox(num_byzantine={job.byzantine}) accepts the rule.",
            'median of 5 x mean: outer="median", buckets=5, inner="mean".',
        ],
        [_objection(candidate) for candidate in comparison.candidates if not candidate.fits],
    )
    if comparison.host_losses:
        yield _Sheet(
            "What a host does to the groups when all its ranks lie",
            ["r", "placement", "worst host", "captured", "abstaining", "tolerated by"],
            map(_host_row, comparison.host_losses),
        )

    if job.faults is not None:
        yield _endurance_sheet(comparison.endurances, job.faults, job.ranks)


def _endurance_sheet(endurances: Sequence[Endurance], faults: Faults, ranks: int) -> _Sheet:
    expected = ranks * faults.steps * faults.rate
    return _Sheet(
        f"What transient faults do in {faults.steps:g} steps: {expected:.2g} are expected",
        ["r", "groups", "they stay", f"healed in {faults.scrub_every}", "healed at once"],
        map(_endurance_row, endurances),
        [
            f"Each rank is hit with a chance of {faults.rate:g} in a step. How likely it is that "
            "some group is without a majority of right members at some time: if they stay, as "
            f"where nobody compares; if what is hit is healed within {faults.scrub_every} steps, "
            "as what shows in no gradient; if at once, as what shows. all: weights and optimizer "
            "state, which all ranks decide on."
        ],
    )


def _endurance_row(each: Endurance) -> Sequence[object]:
    return (
        each.group_size or "all",
        _sizes(each.sizes),
        *(
            "-" if share is None else chance(share)
            for share in (each.stay, each.within_scrub, each.at_once)
        ),
    )


def _sizes(sizes: Sequence[int]) -> str:
    return ", ".join(f"{n} of {size}" for size, n in sorted(Counter(sizes).items()))


def _capture_row(redundancy: Redundancy) -> Sequence[object]:
    groups = len(redundancy.sizes)
    likely = [(c, share) for c, share in enumerate(redundancy.captured) if share >= LEAST_SHARE]
    return (
        redundancy.group_size,
        _sizes(redundancy.sizes),
        redundancy.captured_at_worst,
        ", ".join(f"{c}: {percent(share)}" for c, share in likely),
        f"{redundancy.bad_votes:.2g} ({percent(redundancy.bad_votes / groups)})",
        percent(redundancy.intact),
    )


def _cost_row(redundancy: Redundancy) -> Sequence[object]:
    return (
        redundancy.group_size,
        redundancy.batch,
        f"x {redundancy.compute:.1f}",
        f"{redundancy.samples_per_rank:.4g}",
        f"x {redundancy.compute:.1f}",
        f"{_megabytes(redundancy.received)} (x {redundancy.of_allreduce:.2f})",
        _megabytes(redundancy.leaders_received),
        _megabytes(redundancy.memory),
    )


def _rule_row(candidate: Candidate) -> Sequence[object]:
    return (
        candidate.group_size,
        candidate.name,
        "-" if candidate.stands is None else candidate.stands,
        percent(candidate.holds),
        "fits" if candidate.fits else "does not fit",
    )


def _objection(candidate: Candidate) -> str:
    return f"r = {candidate.group_size}, {candidate.name}: {candidate.reason}"


def _host_row(loss: HostLoss) -> Sequence[object]:
    return (
        loss.group_size,
        loss.placement,
        f"{loss.host} ({loss.ranks} ranks)",
        f"{loss.captured} of {loss.groups}",
        loss.abstaining,
        ", ".join(loss.stood_by) or "none",
    )


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.4g} MB"

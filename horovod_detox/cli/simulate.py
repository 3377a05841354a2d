"""The command `horovod-detox simulate`."""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from statistics import median
from types import NoneType
from typing import Any, get_args, get_type_hints

from rich.console import Console
from rich.progress import track
from rich.table import Table

from horovod_detox.config import Detox
from horovod_detox.lab.journal import Journal, train
from horovod_detox.lab.run import CHOICES, DESCRIBED, METHODS, SETTINGS, Run, read
from horovod_detox.registry import meanings

SECONDS = {
    "seconds": "of a step",
    "gradient_seconds": "of one rank's gradient",
    "aggregation_seconds": "of the votes and their aggregation",
}


GROUPS = {"abstentions": "had no majority", "non_finite": "voted NaN or infinity"}
METAVARS = {int: "N", float: "X"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every part of the description of a run."""
    add = parser.add_argument
    add("file", type=Path, nargs="?", help="a TOML file that describes the run; flags change it")
    add(
        "--method",
        choices=METHODS,
        metavar="METHOD",
        help=f"the settings to start from: {', '.join(METHODS)}",
    )
    add(
        "--log",
        type=Path,
        metavar="FILE",
        help="write one JSON line per step; the same command goes on after an interruption",
    )
    for cls, described in ((Run, DESCRIBED - SETTINGS), (Detox, SETTINGS)):
        hints, documentation = get_type_hints(cls), meanings(cls)
        for name in [field.name for field in fields(cls) if field.name in described]:
            how: dict[str, Any] = _reading(hints[name])
            text = documentation[name].removesuffix(".").replace("%", "%%")
            if name in CHOICES:
                how["choices"] = CHOICES[name]
                text += f" (one of: {', '.join(CHOICES[name])})"
            if "action" not in how:
                how["metavar"] = METAVARS.get(how["type"], name.upper())
            add(f"--{name.replace('_', '-')}", help=text, default=argparse.SUPPRESS, **how)


def run(args: argparse.Namespace) -> int:
    """Train as the flags say and print how it went; return the exit code."""
    given = {name: value for name, value in vars(args).items() if name in DESCRIBED}
    journal = train(read(args.file, args.method, **given), args.log, _progress)
    Console(highlight=False).print(_table(journal))
    if journal.stopped:
        print(f"stopped: {journal.stopped}", file=sys.stderr)
    return 1 if journal.stopped else 0


def _progress(steps: Iterable[int]) -> Iterable[int]:
    return track(steps, "steps", console=Console(stderr=True))


def _table(journal: Journal) -> Table:
    """Return what a run came to, in a few lines."""
    table = Table.grid(padding=(0, 2))
    rows = [row for row in journal.rows if "seconds" in row]
    table.add_row("test accuracy", f"{journal.accuracy:.1%} after {len(rows)} steps")
    named = ", ".join(f"{rank} ({steps})" for rank, steps in journal.dissents.items())
    table.add_row("ranks named as faulty (steps)", named or "none")
    for kind, what in GROUPS.items():
        count = sum(bool(row[kind]) for row in rows)
        table.add_row(f"steps in which a group {what}", str(count))
    for name, what in SECONDS.items() if rows else ():
        table.add_row(f"seconds {what}, median", f"{median(row[name] for row in rows):.4f}")
    return table


def _reading(hint: Any) -> dict[str, Any]:
    """Return how argparse reads a value of a type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    types = [each for each in get_args(hint) or [hint] if each is not NoneType]
    return {"type": types[0] if types[0] in (int, float) else str}

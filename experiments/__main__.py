"""Run a named experiment: python -m experiments cost

Its rows are kept as docs/results/<name>.jsonl, below a first line that tells what was run; from
them its page docs/results/<name>.md and the figures are drawn, again with --draw-only.
To add an experiment, write it as a module and name it in the table.
"""

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import torch

from experiments import cost, figure1, figure2, grid, momentum, variance
from measuring import machine
from measuring.tables import Row, load, report

RESULTS = Path(__file__).parent.parent / "docs" / "results"


class Experiment(Protocol):
    """A module whose docstring says in its first line what is found out.

    One with a flag `--resume` finds the rows kept before in `args.known`, and yields again those
    that it still wants.
    """

    __doc__: str | None

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags of the experiment."""
        ...

    def measure(self, args: argparse.Namespace) -> Iterable[Row]:
        """Return the rows, each as soon as it is known; of values that JSON holds."""
        ...

    def draw(self, rows: list[Row], folder: Path) -> str:
        """Write the figures into a folder and return the Markdown that shows and explains them."""
        ...


EXPERIMENTS: dict[str, Experiment] = {
    "cost": cost,
    "variance": variance,
    "figure1": figure1,
    "figure2": figure2,
    "grid": grid,
    "momentum": momentum,
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end the program with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str]) -> None:
    """Measure and draw, or only draw, the experiment that the arguments name."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(1)
    experiment, rows = EXPERIMENTS[args.name], args.output / f"{args.name}.jsonl"
    if not args.draw_only:
        record(experiment, args, rows, shlex.join(["python", "-m", "experiments", *arguments]))
    if not rows.exists():
        sys.exit(f"{rows} does not exist: measure first, without --draw-only")
    write(args.name, experiment, rows)


def parser() -> Parser:
    """Return the parser: one command for each experiment, with its own flags."""
    found = Parser("python -m experiments", description=(__doc__ or "").split("\n")[0])
    commands = found.add_subparsers(dest="name", required=True, metavar="experiment")
    for name, experiment in EXPERIMENTS.items():
        command = commands.add_parser(name, help=title(experiment))
        command.add_argument("--draw-only", action="store_true", help="draw the rows kept before")
        command.add_argument("--output", type=Path, default=RESULTS, help="default: docs/results")
        experiment.flags(command)
    return found


def title(experiment: Experiment) -> str:
    """Return the first line of the experiment's docstring without its full stop."""
    return (experiment.__doc__ or "").split("\n")[0].rstrip(".")


def record(experiment: Experiment, args: argparse.Namespace, path: Path, command: str) -> None:
    """Measure, and keep every row as soon as it is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    run = {"command": command, "machine": machine.describe("one thread")}
    args.known = known_rows(path) if getattr(args, "resume", False) else []
    rows = iter(experiment.measure(args))
    first = list(itertools.islice(rows, 1))  # settings that do not fit cost no rows kept before
    path.unlink(missing_ok=True)
    report([run], path)
    for row in itertools.chain(first, rows):
        report([row], path)
        print(f"{time.monotonic() - start:5.0f} s", row, flush=True)


def known_rows(path: Path) -> list[Row]:
    """Return the rows kept before; a last line that was not completed does not count."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines[1:]]


def write(name: str, experiment: Experiment, path: Path) -> None:
    """Draw the rows of an experiment into its page and its figures."""
    run, *rows = load([path])
    page = f"# {title(experiment)}\n\n{experiment.draw(rows, path.parent).rstrip()}\n\n"
    page += f"## What was run\n\n`{run['command']}`, on\n\n{run['machine']}\n"
    redraw = f"`python -m experiments {name} --draw-only`"
    page += f"The rows: [{path.name}]({path.name}); {redraw} draws them again.\n"
    path.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])

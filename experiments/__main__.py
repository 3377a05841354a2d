"""Run a named experiment: python experiments cost

Its rows are kept as docs/results/<name>.jsonl, below a first line that tells what was run; from
them its page docs/results/<name>.md and the figures are drawn, again with --draw-only.
To add an experiment, write it as a module and name it in the table.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import cost
import torch
import variance

from horovod_detox.lab import machine
from horovod_detox.lab.tables import Row, load, report

RESULTS = Path(__file__).parent.parent / "docs" / "results"


class Experiment(Protocol):
    """A module whose docstring says in its first line what is found out."""

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
        record(experiment, args, rows, shlex.join(["python", "experiments", *arguments]))
    if not rows.exists():
        sys.exit(f"{rows} does not exist: measure first, without --draw-only")
    write(args.name, experiment, rows)


def parser() -> Parser:
    """Return the parser: one command for each experiment, with its own flags."""
    found = Parser("python experiments", description=(__doc__ or "").split("\n")[0])
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
    path.unlink(missing_ok=True)
    report([run], path)
    for row in experiment.measure(args):
        report([row], path)
        print(f"{time.monotonic() - start:5.0f} s", row, flush=True)


def write(name: str, experiment: Experiment, path: Path) -> None:
    """Draw the rows of an experiment into its page and its figures."""
    run, *rows = load([path])
    page = f"# {title(experiment)}\n\n{experiment.draw(rows, path.parent).rstrip()}\n\n"
    page += f"## What was run\n\n`{run['command']}`, on\n\n{run['machine']}\n"
    page += f"The rows: [{path.name}]({path.name}); `python experiments {name} --draw-only` draws "
    page += "them again.\n"
    path.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])

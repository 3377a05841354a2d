"""The console script `horovod-detox`.

To add a command, write a module with `add_arguments(parser)` and `run(args)`, which returns the
exit code, and name it in the table below.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from horovod_detox.remedies import BAD_INPUT, REMEDIES

PROGRAM = "horovod-detox"

COMMANDS = {
    "plan": ("horovod_detox.cli.plan", "compare settings for a job before it runs"),
    "doctor": (
        "horovod_detox.cli.doctor",
        "check this installation, or, in a job, its ranks",
    ),
    "simulate": (
        "horovod_detox.cli.simulate",
        "train with virtual ranks in one process",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code.

    A command refuses bad input by a ValueError, which ends here in one line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    try:
        args = _parser(command).parse_args(arguments)
        return args.run(args)
    except ValueError as error:
        return _refuse(command, str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in REMEDIES:
            raise
        return _refuse(command, f"it needs {missing}: {REMEDIES[missing]}")


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser of all commands; only the module of the chosen one is imported."""
    parser = _Parser(
        prog=PROGRAM,
        description="Tools for horovod_detox: Horovod training that survives bad ranks.",
        epilog=f"{PROGRAM} command --help lists the options of a command.",
    )
    commands = parser.add_subparsers(required=True, title="commands", metavar="command")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name == chosen:
            imported = import_module(module)
            imported.add_arguments(command)
            command.set_defaults(run=imported.run)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def _refuse(command: str, reason: str) -> int:
    print(f"{PROGRAM} {command}: {reason}", file=sys.stderr)
    return BAD_INPUT

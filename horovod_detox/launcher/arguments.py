"""The flags of `python -m horovod_detox`: those of `Detox`, then the script and its own."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, NoReturn

from horovod_detox import Detox
from horovod_detox.config import PREFIX
from horovod_detox.launcher.speech import refuse
from horovod_detox.registry import meanings

PROGRAM = "python -m horovod_detox"
DESCRIPTION = (
    "Run a script that was written for plain Horovod, without a change, with DETOX in the place of "
    "allreduce. Start it as usual: horovodrun -np 6 python -m horovod_detox --group-size 3 train.py"
)


@dataclass(frozen=True)
class Arguments:
    """What the command line asks for.

    Attributes:
        script: the path of the script, or the name of a module.
        is_module: which of them.
        rest: the script's own arguments.
        group_seed: seeds what the script leaves unseeded.
        variables: HOROVOD_DETOX_* that the flags stand for.
    """

    script: str
    is_module: bool
    rest: list[str]
    group_seed: int
    variables: dict[str, str]


def parse(arguments: Sequence[str]) -> Arguments:
    """Read the command line; unknown flags before the script are refused."""
    usage = f"{PROGRAM} [options] script [arguments of the script]"
    parser = _Parser(prog=PROGRAM, usage=usage, description=DESCRIPTION, allow_abbrev=False)
    explained = meanings(Detox)
    for field in fields(Detox):
        parser.add_argument(
            flag_of(field.name),
            type=_reader(field),
            metavar=field.name.upper(),
            help=f"{explained[field.name].rstrip('.')} (default: {field.default})".replace(
                "%", "%%"
            ),
        )
    add = parser.add_argument
    add("--attack", help='an attack to rehearse, and its ranks: "reverse(scale=100)@1,4"')
    add(
        "--group-seed",
        type=int,
        default=0,
        help="seed of the random states that the script does not seed (default: 0)",
    )
    add(
        "-m",
        dest="is_module",
        action="store_true",
        help="the script is given as the name of a module",
    )
    add("script", help="the script to run")
    add("rest", nargs=argparse.REMAINDER, metavar="...", help="the arguments of the script")
    found = vars(parser.parse_args(arguments))
    ours = [*(field.name for field in fields(Detox)), "attack"]
    variables = {PREFIX + name.upper(): found.pop(name) for name in ours}
    given = {name: str(value) for name, value in variables.items() if value is not None}
    return Arguments(**found, variables=given)


def flag_of(field: str) -> str:
    """Return the flag of a field.

    >>> flag_of("group_size")
    '--group-size'
    """
    return "--" + field.replace("_", "-")


def _reader(field: Field[Any]) -> Callable[[str], Any]:
    """Return what reads the text of a flag: a number, where the field is one."""
    if field.type in (int, int | None):
        return integer if field.type is int else integer_or_none
    return float if field.type is float else str


def integer(text: str) -> int:
    return int(text)


def integer_or_none(text: str) -> int | str:
    return "none" if text.lower() == "none" else int(text)


class _Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, on rank 0."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message} ({PROGRAM} --help lists the flags)")

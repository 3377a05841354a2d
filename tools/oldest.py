"""Print the oldest versions that pyproject.toml allows, one requirement a line, for some extras.

python tools/oldest.py torch lab > constraints.txt
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest(project: dict[str, Any], extras: Iterable[str]) -> list[str]:
    """Return what a project needs at its lower bounds; exact versions remain as they are.

    Raises:
        ValueError: for a requirement without a bound.

    >>> oldest({"dependencies": ["a>=1.2"], "optional-dependencies": {"b": ["c[d]==3"]}}, ["b"])
    ['a==1.2', 'c==3']
    """
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return [_at_the_bound(requirement) for requirement in wanted]


def _at_the_bound(requirement: str) -> str:
    found = re.fullmatch(r"([\w-]+)(?:\[.*\])?\s*[>=]=\s*([\w.]+)", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} has no lower bound")
    return f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    print(*oldest(tomllib.loads(PROJECT.read_text())["project"], sys.argv[1:]), sep="\n")

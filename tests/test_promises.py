"""docs/promises.md and docs/scripts.md name tests that exist, the first on the ranks it says."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text()
SCRIPTS = (ROOT / "docs" / "scripts.md").read_text()


class Promise(NamedTuple):
    """One row of the page."""

    words: str
    test: str
    counter_test: str
    ranks: str


def promises() -> list[Promise]:
    """Return the rows of the page."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return [Promise(*row) for row in rows[1:]]


def functions(file: Path) -> set[str]:
    """Return the names of the functions of a file."""
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def exists(name: str) -> bool:
    """Return whether there is a test of this name, `file::function`."""
    file, _, function = name.strip("`").partition("::")
    return (ROOT / file).is_file() and function in functions(ROOT / file)


def test_every_named_test_exists():
    named = {name for promise in promises() for name in (promise.test, promise.counter_test)}
    assert {name for name in named if not exists(name)} == set()
    assert len(promises()) > 35


def test_every_shape_of_a_script_names_a_test_that_exists():
    rows = [line for line in SCRIPTS.splitlines() if line.startswith("| ")]
    rows = [row.strip("| ").split(" | ") for row in rows if not row.startswith("| shape")]
    assert {row[-1] for row in rows if not exists(row[-1])} == set()
    assert len(rows) > 50
    assert all(len(row) == 3 for row in rows)


def test_the_check_can_fail():
    assert not exists("`tests/test_promises.py::test_of_nothing`")
    assert not exists("`tests/test_nothing.py::test_every_named_test_exists`")


def test_no_promise_is_its_own_counter_test():
    assert all(promise.test != promise.counter_test for promise in promises())


JOBS = ("distributed", "hosts", "launcher", "watch/test_elastic", "watch/test_stops")
REAL = tuple(f"`tests/{name}" for name in JOBS)
"""How the names begin of tests that start jobs."""


def test_the_ranks_are_those_that_the_tests_run_on():
    for promise in promises():
        ranks = set(re.findall(r"\d+", promise.ranks.partition(" on ")[0]))
        started = promise.test.startswith(REAL)
        assert started == (ranks != {"1"}), promise

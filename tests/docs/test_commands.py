"""Every command of the documentation is run by a test, or the table says why not."""

import re
from typing import NamedTuple

from tests.docs.pages import COMMANDS, ROOT, blocks, commands, pages
from tests.test_promises import exists

TABLE = ROOT / "tests" / "docs" / "commands.md"


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        pattern: of commands; `...` stands for anything.
        run_by: a test, `.ci/run`, or why it is not run.
    """

    pattern: str
    run_by: str

    def matches(self, command: str) -> bool:
        parts = map(re.escape, self.pattern.strip("`").split("..."))
        return re.fullmatch(".*".join(parts), command) is not None


def rows() -> list[Row]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return [Row(*line.strip("| ").split(" | ")) for line in lines]


def told() -> list[tuple[str, str]]:
    """Return all commands with the page and line where they stand."""
    return [
        (f"{page.relative_to(ROOT)}:{block.line}", command)
        for page in pages()
        for block in blocks(page.read_text())
        if block.language in COMMANDS
        for command in commands(block)
    ]


def test_every_command_is_run_or_has_a_reason() -> None:
    assert len(told()) > 60
    unknown = [each for each in told() if not any(row.matches(each[1]) for row in rows())]
    assert unknown == []


def test_the_table_has_no_row_too_many() -> None:
    seen = [command for _, command in told()]
    assert [row for row in rows() if not any(map(row.matches, seen))] == []


def test_every_test_of_the_table_exists() -> None:
    named = [row.run_by for row in rows() if row.run_by.startswith("`tests/")]
    assert len(named) > 8
    assert [each for each in named if not exists(each)] == []


def test_what_ci_is_said_to_run_it_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    said = [row.pattern.strip("`") for row in rows() if row.run_by == "`.ci/run`"]
    assert said
    assert [command for command in said if command not in map(str.strip, script)] == []


def test_the_check_can_fail() -> None:
    assert Row("`make ... now`", "").matches("make it now")
    assert not Row("`make`", "").matches("make test")
    assert not any(row.matches("make nothing") for row in rows())

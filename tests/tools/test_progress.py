"""A build says how far it is, and nothing where there is nothing to say."""

import io
from pathlib import Path

import pytest

from tools.progress import Progress, percent

LINES = [
    "$ pip wheel\n",
    "  [  7%] Building CXX a.o\n",
    "noise 12%\n",
    "  [ 16%] Building CXX b.o\n",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "build.log"
    path.write_text(LINES[0])
    return path


def test_the_last_percentage_of_a_log_counts(log: Path) -> None:
    assert percent(log) is None
    log.write_text("".join(LINES))
    assert percent(log) == 16


@pytest.mark.parametrize("output", [io.StringIO(), Terminal()])
def test_progress_is_one_line_on_a_terminal_and_a_few_elsewhere(
    log: Path, output: io.StringIO
) -> None:
    progress = Progress(log, output)
    progress.look()
    assert output.getvalue() == ""
    for done in range(0, 101, 2):
        log.write_text(f"[{done:3}%] Building\n")
        progress.look()
    progress.end()
    progress.end()
    text = output.getvalue()
    assert text.endswith("100 % compiled after 0:00\n")
    assert text.count("\n") == (1 if output.isatty() else 11)

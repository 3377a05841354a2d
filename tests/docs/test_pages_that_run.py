"""The pages that say that they run: their code prints what stands below it."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.jobs import environment

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"pytorch": "torch", "keras": "tensorflow"}
"""Pages by name, with the framework that they need."""
RUNNER = """
import contextlib, io, json, sys
printed, names = [], {"__name__": "__main__"}
for number, block in enumerate(json.load(sys.stdin)):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(block, f"block {number}", "exec"), names)
    printed.append(output.getvalue())
print(json.dumps(printed))
"""


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the Python blocks of a page, each with the output that stands right below it."""
    found = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", page, re.MULTILINE | re.DOTALL
    )
    return [(code, output) for code, output in found]


def run(codes: list[str], tmp_path: Path) -> list[str]:
    """Run blocks one after another in one process; return what each has printed."""
    command = [sys.executable, "-c", RUNNER]
    process = subprocess.run(
        command,
        input=json.dumps(codes),
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(),
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_what_it_shows(name: str, tmp_path: Path) -> None:
    if not all(map(find_spec, ("horovod", "sklearn", PAGES[name]))):
        pytest.skip(f"needs {PAGES[name]} and Horovod")
    shown = blocks((DOCS / f"{name}.md").read_text())
    assert len(shown) > 2
    assert run([code for code, _ in shown], tmp_path) == [output for _, output in shown]


def test_the_check_can_fail(tmp_path: Path) -> None:
    page = "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n"
    shown = blocks(page)
    assert shown == [("x = 1\n", ""), ("print(x)\n", "2\n")]
    assert run([code for code, _ in shown], tmp_path) == ["", "1\n"]

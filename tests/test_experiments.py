"""The experiments, run small: their rows, their pages, and what their prose says."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")

FOLDER = Path(__file__).parent.parent / "experiments"


@pytest.fixture(scope="module")
def frame() -> Iterator[ModuleType]:
    """Import the experiments as `python experiments` does: by their bare names."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("experiments.__main__")
    for path in FOLDER.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


class Squares:
    """What squares are.

    More of it.
    """

    def flags(self, parser):
        parser.add_argument("--up-to", type=int, default=3)

    def measure(self, args):
        for i in range(args.up_to):
            if i == 5:
                raise RuntimeError("the power has failed")
            yield {"i": i, "square": i**2}

    def draw(self, rows, folder):
        return f"The largest is {max(row['square'] for row in rows)}."


@pytest.fixture
def run(frame: ModuleType, monkeypatch, tmp_path: Path):
    """Return a function that runs an experiment, given its flags, and returns its page."""
    monkeypatch.setitem(frame.EXPERIMENTS, "squares", Squares())
    threads = frame.torch.get_num_threads()

    def go(name: str, *arguments: str) -> str:
        frame.main([name, "--output", str(tmp_path), *arguments])
        return (tmp_path / f"{name}.md").read_text()

    yield go
    frame.torch.set_num_threads(threads)


def test_a_page_says_what_was_run_and_seen(run, tmp_path: Path):
    page = run("squares", "--up-to", "5")
    assert page.startswith("# What squares are\n\nThe largest is 16.\n")
    assert "`python experiments squares --output" in page
    assert "--up-to 5`" in page
    assert "numpy" in page
    head, *rows = map(json.loads, (tmp_path / "squares.jsonl").read_text().splitlines())
    assert head["command"].endswith("--up-to 5")
    assert rows[-1] == {"i": 4, "square": 16}
    assert len(rows) == 5


def test_rows_are_drawn_again_and_not_measured(run, tmp_path: Path):
    page = run("squares")
    assert run("squares", "--draw-only", "--up-to", "9") == page
    assert "The largest is 4." in page


def test_what_was_measured_before_a_failure_is_kept(run):
    with pytest.raises(RuntimeError, match="power"):
        run("squares", "--up-to", "9")
    assert "The largest is 16." in run("squares", "--draw-only")


def test_nothing_to_draw(run):
    with pytest.raises(SystemExit, match=r"squares.jsonl does not exist: measure first"):
        run("squares", "--draw-only")


@pytest.mark.parametrize("arguments", [["nothing"], [], ["squares", "--up-to", "many"]])
def test_a_wrong_command_is_answered_in_one_line(frame, run, capsys, arguments):
    with pytest.raises(SystemExit) as error:
        frame.main(arguments)
    assert error.value.code == 2
    output = capsys.readouterr()
    assert (output.out, len(output.err.splitlines())) == ("", 1)
    assert output.err.startswith("python experiments")


def test_every_experiment_says_what_it_finds_out(frame):
    assert all(frame.title(experiment) for experiment in frame.EXPERIMENTS.values())

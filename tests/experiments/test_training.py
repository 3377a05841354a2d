"""The experiments that train, run small: their trainings, rows, pages, and going on."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from experiments import __main__ as frame  # noqa: E402
from experiments import training  # noqa: E402
from horovod_detox.lab.run import METHODS  # noqa: E402

SMALL = ["--dataset", "digits", "--ranks", "9", "--steps", "3", "--global-batch", "90"]
SMALL += ["--workers", "1"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Return a function that runs an experiment, given its flags, and returns its page."""
    threads = torch.get_num_threads()

    def go(name: str, *arguments: str) -> str:
        frame.main([name, "--output", str(tmp_path), *arguments])
        return " ".join((tmp_path / f"{name}.md").read_text().split())

    yield go
    torch.set_num_threads(threads)


def settings(experiment: Any, *arguments: str) -> Namespace:
    """Return the settings of an experiment that these flags make."""
    parser = ArgumentParser()
    experiment.flags(parser)
    return parser.parse_args(arguments)


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def without_header(folder: Path, name: str) -> list[dict[str, Any]]:
    return rows_of(folder, name)[1:]


def test_figure1_shows_both_batches_and_modelled_time(run, tmp_path: Path):
    flags = [*SMALL, "--methods", "median", "detox_median"]
    page = run("figure1", *flags, "--attacks", "none", "deviation:1")
    rows = without_header(tmp_path, "figure1")
    assert rows[0]["lr"] == 0.2
    trained, times = rows[1:7], rows[7:]
    shown = [("median", "equal batch"), ("detox_median", "equal batch")]
    shown.append(("detox_median", "equal work"))
    assert [(row["method"], row["batch"]) for row in trained] == 2 * shown
    assert [(row["method"], row["batch"]) for row in times] == shown
    assert all(row["gradient_ms"] > 0 and row["aggregation_ms"] > 0 for row in times)
    assert [row["curve"][-1] for row in trained] == [[3, row["accuracy"]] for row in trained]
    assert trained[1]["trace"] == trained[4]["trace"] != trained[2]["trace"]
    assert trained[0]["trace"] != trained[3]["trace"]
    assert "in 2 of 2 trainings with groups every loss and accuracy has the bits of that" in page
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "figure1-steps.svg",
        "figure1-seconds.svg",
    }
    assert run("figure1", "--draw-only") == page


def test_figure2_compares_signs(run, tmp_path: Path):
    page = run("figure2", *SMALL)
    rows = without_header(tmp_path, "figure2")[1:]
    assert {row["method"] for row in rows} == {"sign", "detox_sign"}
    assert len(rows) == 6
    assert "a majority in 2.00 groups of `detox_sign` on average" in page
    assert "learning rate 0.001." in page


def test_momentum_compares_steps_of_equal_length(run, tmp_path: Path):
    flags = [*SMALL, "--methods", "median", "detox_median", "--attacks", "none", "deviation:5"]
    page = run("momentum", *flags)
    assert len(without_header(tmp_path, "momentum")) == 1 + 2 * 2 * 2
    assert "With momentum of the votes the attacks cost plain rules up to" in page
    server, votes = frame.momentum.trainings(settings(frame.momentum))[:2]
    assert (server.run.detox.momentum, server.run.sgd_momentum, server.run.lr) == (0, 0.9, 0.05)
    assert (votes.run.detox.momentum, votes.run.sgd_momentum) == (0.9, 0)
    assert votes.run.lr == pytest.approx(0.5)


def test_the_grid_names_what_is_lost(run, tmp_path: Path):
    flags = ["--methods", "sign", "redundancy", "--attacks", "constant", "--faulty", "1", "4"]
    page = run("grid", *SMALL, *flags)
    attacks = [row["attack"] for row in without_header(tmp_path, "grid")[1:]]
    assert attacks[:3] == [None, "constant(value=-1)@random:1", "constant(value=-1)@random:4"]
    assert attacks[3:] == [None] + [
        f"constant(value=-100)@{place}" for place in ("random:1", "random:4", "concentrated:4")
    ]
    assert "prepared for 4 faulty ranks (`sign`), or, as it cannot be, for as many" in page
    assert "| redundancy | concentrated |" in page
    assert "In 1 trainings with groups no group ever lost its majority; in 1 of them" in page


def test_what_the_grid_says_of_known_rows():
    page = sys.modules["experiments.grid_page"]
    row = {"seed": 0, "trace": "a"}
    rows = [
        row | {"method": "bulyan", "attack": None, "accuracy": 0.9},
        row | {"method": "bulyan", "attack": "nan@random:9", "accuracy": 0.88},
        row | {"method": "detox_bulyan", "attack": None, "accuracy": 0.95},
        row | {"method": "detox_bulyan", "attack": "nan@random:9", "accuracy": 0.91},
        row | {"method": "detox_bulyan", "attack": "nan@concentrated:9", "accuracy": 0.1},
    ]
    cells = page.table_of(rows)
    assert cells["detox_bulyan", "nan", "concentrated", 9] == 0.1
    fair = {"bulyan": 0.9, "detox_bulyan": 0.95}
    told = page._seen(rows, cells, fair, {"ranks": 45, "steps": 10})
    assert "Methods with groups lose more than 5 points in 1 of 2 cells." in told
    assert "`detox_bulyan` loses that much with `nan` concentrated (q = 9)." in told
    assert told[-1].endswith("in 1 cells: `detox_bulyan` with `nan` concentrated (q = 9).")


def test_the_trainings_are_those_of_the_plan():
    """All attacks on all methods, with every number and place of faulty ranks."""
    args = settings(frame.grid)
    cells = frame.grid.trainings(args)
    plain = [name for name in METHODS if METHODS[name]["group_size"] == 1]
    grouped = [name for name in METHODS if METHODS[name]["group_size"] == 3]
    assert len(cells) == len(METHODS) + 10 * (4 * len(plain) + 7 * len(grouped))
    assert len({each.key for each in cells}) == len(cells)
    faulty = {
        name: {c.run.detox.num_byzantine for c in cells if c.labels["method"] == name}
        for name in METHODS
    }
    assert all(len(numbers) == 1 for numbers in faulty.values())
    assert (faulty["bulyan"], faulty["detox_median"], faulty["detox_bulyan"]) == ({9}, {9}, {None})
    assert {each.run.global_batch for each in cells} == {360}

    shown = frame.figure1.trainings(settings(frame.figure1))
    assert {(each.run.global_batch, each.run.batch_size) for each in shown} == {
        (1440, None),
        (None, 32),
    }
    assert {each.run.attack for each in shown} == set(frame.figure1.ATTACKS.values())
    assert {
        each.run.detox.num_byzantine for each in shown if "bulyan" in each.labels["method"]
    } == {5}
    assert len(shown) == 5 * (4 + 2 * 3)


def test_quick_is_a_part_of_the_grid():
    quick = frame.grid.QUICK
    assert set(quick["attacks"]) < set(frame.grid.ATTACKS)
    assert set(quick["methods"]) < set(METHODS)
    assert set(quick["faulty"]) < set(frame.grid.FAULTY)


def test_flags_reach_the_runs():
    flags = "--dataset cifar10 --model resnet18 --steps 7 --lr 0.3 --sign-lr 0.4 --device cpu"
    args = settings(frame.figure2, *flags.split(), "--seeds", "1", "2")
    runs = [each.run for each in frame.figure2.trainings(args)]
    assert {(run.dataset, run.model_name, run.steps, run.device) for run in runs} == {
        ("cifar10", "resnet18", 7, "cpu")
    }
    assert {(run.seed, run.lr, run.channels_last, run.gradients) for run in runs} == {
        (1, 0.4, True, "each"),
        (2, 0.4, True, "each"),
    }


def test_an_interrupted_experiment_goes_on(run, monkeypatch, tmp_path: Path):
    flags = [*SMALL, "--methods", "averaging", "median", "--attacks", "nan", "--faulty", "1"]
    whole = run("grid", *flags)
    lines = (tmp_path / "grid.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "grid.jsonl").write_text("".join(lines[:4]) + '{"method": "med')
    trained = []

    def noting(each):
        trained.append((each.labels["method"], each.run.attack))
        return train_one(each)

    train_one = training.train_one
    monkeypatch.setattr(training, "train_one", noting)
    resumed = run("grid", *flags, "--resume")
    assert trained == [("median", None), ("median", "nan@random:1")]
    assert resumed.replace(" --resume", "") == whole
    run("grid", *flags, "--resume", "--steps", "2")
    assert len(trained) == 2 + 4  # the rows of other settings do not count
    run("grid", *flags, "--steps", "2")
    assert len(trained) == 2 + 4 + 4


def test_settings_that_do_not_fit_cost_no_rows(run, tmp_path: Path):
    flags = [*SMALL, "--methods", "averaging", "--attacks", "nan", "--faulty", "1"]
    run("grid", *flags)
    before = (tmp_path / "grid.jsonl").read_text()
    for wrong, message in (
        (["--methods", "detox_multi_krum"], "MultiKrum"),
        (["--global-batch", "91"], "91 cannot be divided among 9 groups"),
        (["--attacks", "a_little_is_enough", "--faulty", "5"], "z is defined for n >= 3"),
    ):
        with pytest.raises(SystemExit, match=message):
            run("grid", *flags, *wrong)
    assert (tmp_path / "grid.jsonl").read_text() == before


def test_processes_return_the_same_rows():
    args = settings(frame.figure2, *SMALL)
    args.known = []
    here = list(training.train_all(frame.figure2.trainings(args)[:3], args))
    args.workers = 2
    assert list(training.train_all(frame.figure2.trainings(args)[:3], args)) == here


def test_a_training_that_is_ruined_says_why():
    args = settings(frame.grid, *SMALL, "--steps", "6")
    ruined = training.describe(args, "averaging", attack="reverse(scale=1e30)@random:1")
    row = training.train_one(training.Training(ruined, curve=False))
    assert row["stopped"].endswith("the loss is not finite")
    assert "curve" not in row

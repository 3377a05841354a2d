"""All ranks in one process: what a run is, what is noted of it, and that nothing is made up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from horovod_detox.cli.main import main  # noqa: E402
from horovod_detox.lab.journal import read_log, train  # noqa: E402
from horovod_detox.lab.models import MODELS  # noqa: E402
from horovod_detox.lab.run import DESCRIBED, METHODS, Run, read  # noqa: E402
from horovod_detox.lab.simulation import Simulation  # noqa: E402

SECONDS = {"seconds", "gradient_seconds", "aggregation_seconds"}
SMALL: dict[str, Any] = {"ranks": 9, "steps": 6, "batch_size": 200, "evaluate_every": 3}


def weights(simulation: Simulation) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in simulation.model.parameters())


def trained(run: Run) -> tuple[Simulation, list[Any]]:
    simulation = Simulation(run)
    return simulation, [simulation.step() for _ in range(run.steps)]


@pytest.mark.parametrize("gradients", ["each", "vmap"])
@pytest.mark.parametrize("attack", ["reverse", "a_little_is_enough", "stale", "bit_flip"])
def test_masked_ranks_change_no_bit_and_are_named(gradients: str, attack: str) -> None:
    run = read(None, "detox_bulyan", **SMALL, gradients=gradients)
    fair, _ = trained(run)
    attacked, steps = trained(replace(run, attack=f"{attack}@1,3,8"))
    assert weights(attacked) == weights(fair)
    first = 1 if attack == "stale" else 0  # its first copy is fresh
    assert [step.dissenters for step in steps] == [()] * first + [(1, 3, 8)] * (6 - first)
    assert all(step.faulty == (1, 3, 8) for step in steps)


def test_without_a_vote_an_attack_changes_the_weights() -> None:
    run = read(None, "averaging", **SMALL)
    attacked, steps = trained(replace(run, attack="reverse(scale=2)@1"))
    assert weights(attacked) != weights(trained(run)[0])
    assert not any(step.dissenters for step in steps)


def test_a_tolerance_lets_small_lies_pass_but_not_win() -> None:
    run = replace(read(None, "detox_median", **SMALL), steps=2)
    lenient = replace(run, detox=replace(run.detox, tolerance=0.01))
    attacked, steps = trained(replace(lenient, attack="bias(relative=0.005)@0,4"))
    assert weights(attacked) == weights(trained(run)[0])
    assert not any(step.dissenters for step in steps)


def test_flipped_labels_change_what_faulty_ranks_send_and_nothing_else() -> None:
    run = read(None, "detox_median", **SMALL)
    attack = "label_flip(num_classes=10)@{}"
    masked, steps = trained(replace(run, attack=attack.format("1,3")))
    assert weights(masked) == weights(trained(run)[0])
    assert all(step.dissenters == (1, 3) for step in steps)
    captured, steps = trained(replace(run, attack=attack.format("0,3")))
    assert weights(captured) != weights(trained(run)[0])
    assert all(step.dissenters == (6,) for step in steps)  # the honest third of group 0


@pytest.mark.parametrize("name", ["cnn", "no dropout"])
def test_vmap_computes_the_gradients_of_each_group(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(classes: int) -> Any:
        layers = [torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, classes)]
        if name == "cnn":
            head = [torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten()]
            layers = [*head, torch.nn.Linear(144, classes)]
        return torch.nn.Sequential(*layers)

    monkeypatch.setitem(MODELS, "smooth", network)
    run = read(None, "detox_median", **SMALL, model="smooth")
    each, losses = trained(run)
    vmapped, vmapped_losses = trained(replace(run, gradients="vmap"))
    for one, other in zip(each.model.parameters(), vmapped.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [s.loss for s in losses] == pytest.approx([s.loss for s in vmapped_losses], abs=1e-5)


def test_vmap_refuses_statistics_of_batches() -> None:
    with pytest.raises(ValueError, match="cannot train the BatchNorm of resnet18"):
        Simulation(read(None, **SMALL, model="resnet18", gradients="vmap"))


def test_flips_of_what_a_rank_holds_need_a_job() -> None:
    with pytest.raises(ValueError, match="no rank of a simulation holds anything by itself"):
        Simulation(read(None, **SMALL, attack="flip_state(of=buffers)@1"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_as_in_the_paper(method: str) -> None:
    run = read(None, method, steps=2, global_batch=90, gradients="vmap", attack="constant@fixed:5")
    simulation, steps = trained(run)
    assert len(simulation.plan.groups) == 45 // run.detox.group_size
    assert [step.step for step in steps] == [0, 1]
    assert bool(steps[0].dissenters) == (run.detox.group_size == 3)


RESUMED = {
    "drill with memory": {"attack": "stale(lag=3)@random:2", "method": "redundancy"},
    "bfloat16": {"attack": "stale@1", "method": "detox_median", "compression": "bf16"},
    "momentum": {"method": "median", "momentum": 0.9, "attack": "inner_product@random:2"},
    "centre": {"group_size": 1, "outer": "centered_clipping(radius=0.5)"},
    "vmap and schedule": {"method": "detox_median", "gradients": "vmap", "schedule": "cosine"},
    "random rule": {"group_size": 1, "outer": "bucketing(s=2)+median"},
}


@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_run_goes_on_to_the_same_end(case: str, tmp_path: Path) -> None:
    run = read(None, **SMALL | RESUMED[case] | {"steps": 8})
    whole = train(run, tmp_path / "whole.jsonl")

    def interrupted(steps):
        for step in steps:
            if step == 5:
                raise KeyboardInterrupt
            yield step

    log = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        train(run, log, interrupted, save_seconds=0.0)
    with log.open("a") as file:
        file.write('{"step": 5, "lo')  # as a crash leaves it
    seen = []

    def watched(steps):
        for step in steps:
            seen.append(step)
            yield step

    resumed = train(run, log, watched, save_seconds=0.0)
    assert seen == [5, 6, 7]
    assert [row["step"] for row in resumed.rows] == list(range(8))
    for row, expected in zip(resumed.rows, whole.rows, strict=True):
        assert {key for key in row if row[key] != expected[key]} <= SECONDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "whole.jsonl"]
    assert read_log(log).rows == resumed.rows


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    run = read(None, "detox_median", **SMALL)
    first = train(run, tmp_path / "log")
    assert [row["step"] for row in first.rows if "accuracy" in row] == [2, 5]
    again = train(run, tmp_path / "log", lambda steps: pytest.fail("it trains again"))
    assert (again.accuracy, again.dissents) == (first.accuracy, {})


def test_the_log_of_another_run_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    train(read(None, "detox_median", **SMALL | {"steps": 1}), log)
    before = log.read_bytes()
    with pytest.raises(ValueError, match=r"log of another run: its seed is 0, not 1"):
        train(read(None, "detox_median", **SMALL | {"steps": 1, "seed": 1}), log)
    assert log.read_bytes() == before
    log.write_text("something else\n")
    with pytest.raises(ValueError, match="is not the log of a run"):
        train(read(None, "detox_median", **SMALL), log)


def test_a_run_that_is_ruined_ends_and_says_why() -> None:
    result = train(read(None, "averaging", **SMALL, attack="constant(value=-1e38)@1"))
    assert result.stopped == "step 1: the loss is not finite"
    assert result.accuracy < 0.2
    result = train(read(None, "detox_median", **SMALL, attack="random(steps=(2, 4))@0,1,2,3,4,5"))
    assert result.stopped
    assert "every group lost its majority" in result.stopped
    assert [row["step"] for row in result.rows] == [0, 1, 2]


def test_a_description_can_be_read_again() -> None:
    run = read(None, "detox_multi_krum", attack="zero@1", num_byzantine=3, lr=0.1, seed=3)
    assert read(None, **run.describe()) == run
    assert run.detox.seed == 3  # the random placement, too, follows from the one seed


def test_flags_change_a_method_and_that_changes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('method = "detox_bulyan"\nsteps = 7\nouter = "krum"\nlr = 0.5\n')
    run = read(file)
    assert (run.detox.group_size, run.detox.outer, run.steps, run.lr) == (3, "krum", 7, 0.5)
    run = read(file, "bulyan", lr=0.25)
    assert (run.detox.group_size, run.detox.outer, run.steps, run.lr) == (1, "bulyan", 7, 0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "'stepz' is not part of the description of a run: choose from"),
        ("exchange = 'leaders'", "'exchange' is not part of the description"),
        ("steps = 0", "steps = 0: it must be an integer of at least 1"),
        ("steps = 1.5", r"steps = 1.5: it must be an integer"),
        ("lr = '1'", "lr = '1': it must be a number"),
        ("dataset = 'mnist'", "dataset = 'mnist': it must be one of"),
        ("method = 'detox'", "method = 'detox': it must be one of"),
        ("attack = 'revers@1'", "did you mean 'reverse'"),
        ("outer = 'medina'", "did you mean 'median'"),
        ("batch_size = 1\nglobal_batch = 45", "are both given"),
        ("steps", "run.toml: Expected '='"),
    ],
)
def test_a_bad_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "run.toml")


def test_groups_share_the_global_batch():
    assert Run(global_batch=90).group_batch(15) == 6


def test_what_does_not_fit_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch = 100 cannot be divided among 15 groups"):
        Simulation(read(None, global_batch=100))
    with pytest.raises(ValueError, match="4 ranks cannot form a group of 5"):
        Simulation(read(None, ranks=4, group_size=5))
    with pytest.raises(ValueError, match=r"Compression\.sign sends only"):
        Simulation(read(None, compression="sign"))


def test_the_command_trains_and_says_how_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, log = tmp_path / "run.toml", tmp_path / "a new folder" / "log"
    file.write_text('method = "detox_median"\nranks = 9\nattack = "zero@1"\n')
    flags = ["--steps", "4", "--global-batch", "360", "--log", str(log)]
    assert main(["simulate", str(file), *flags]) == 0
    printed = capsys.readouterr().out
    assert f"{read_log(log).accuracy:.1%} after 4 steps" in printed
    assert "1 (4)" in printed
    assert "seconds of one rank's gradient, median" in printed
    flags += ["--method", "averaging", "--attack", "constant(value=-1e38)@1"]
    assert main(["simulate", str(file), *flags]) == 2
    assert "log of another run: its attack is zero@1, not constant" in capsys.readouterr().err
    log.unlink()
    assert main(["simulate", str(file), *flags]) == 1
    assert "stopped: step 1: the loss is not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "2"], "2 ranks cannot form a group of 3"),
        (["--ranks", "two"], "invalid int value"),
        (["--attack", "zero@50"], "ranks [50] are outside a job of 45 ranks"),
        (["--no-such-flag"], "unrecognized arguments"),
        (["missing.toml"], "missing.toml: "),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["simulate", *flags])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_every_flag_says_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"--{name.replace('_', '-')}" in printed for name in DESCRIBED)
    assert "samples of all k groups together; None: `k * batch_size`" in printed


def test_the_log_is_read_as_written(tmp_path: Path) -> None:
    run = read(None, "detox_median", **SMALL, attack="constant@1")
    result = train(run, tmp_path / "log")
    first, *rows = (tmp_path / "log").read_text().splitlines()
    assert read(None, **json.loads(first)["run"]) == run
    assert [json.loads(row)["dissenters"] for row in rows] == [[1]] * 6
    assert read_log(tmp_path / "log").dissents == result.dissents == {1: 6}

"""The experiments, run small: their rows, their pages, and what their prose says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from experiments import __main__ as frame  # noqa: E402
from experiments import cost, variance  # noqa: E402
from horovod_detox.exchange.control import ENTROPY, RECORD  # noqa: E402


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
def run(monkeypatch, tmp_path: Path):
    """Return a function that runs an experiment, given its flags, and returns its page."""
    monkeypatch.setitem(frame.EXPERIMENTS, "squares", Squares())
    threads = torch.get_num_threads()

    def go(name: str, *arguments: str) -> str:
        frame.main([name, "--output", str(tmp_path), *arguments])
        return (tmp_path / f"{name}.md").read_text()

    yield go
    torch.set_num_threads(threads)


def test_a_page_says_what_was_run_and_seen(run, tmp_path: Path):
    page = run("squares", "--up-to", "5")
    assert page.startswith("# What squares are\n\nThe largest is 16.\n")
    assert "`python -m experiments squares --output" in page
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
def test_a_wrong_command_is_answered_in_one_line(run, capsys, arguments):
    with pytest.raises(SystemExit) as error:
        frame.main(arguments)
    assert error.value.code == 2
    output = capsys.readouterr()
    assert (output.out, len(output.err.splitlines())) == ("", 1)
    assert output.err.startswith("python -m experiments")


def test_every_experiment_says_what_it_finds_out():
    assert all(frame.title(experiment) for experiment in frame.EXPERIMENTS.values())


def rows_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()][1:]


def test_the_cost_of_every_rule_is_measured_and_shown(run, tmp_path: Path):
    sizes = ["--ranks", "9", "30", "33", "36", "--floats", "600", "--repeats", "1"]
    rules = ["median", "bulyan"]
    page = run("cost", *sizes, "--rules", *rules, "--bytes-ranks", "9", "--bytes-floats", "6000")
    times = [row for row in rows_of(tmp_path, "cost") if "rule" in row]
    schemes = {"plain": 4, "vote alone": 4, "DETOX": 4, "DETOX, 7 buckets": 3}
    for by in ("one machine", "one rank"):
        for rule in rules:
            chosen = [row for row in times if (row["by"], row["rule"]) == (by, rule)]
            assert all(row["ms"] > 0 for row in chosen)
            found = [row["scheme"] for row in chosen]
            assert {scheme: found.count(scheme) for scheme in schemes} == schemes
            assert page.count(f"| {by} | 600 | {rule} |") == 3
    assert {path.name for path in tmp_path.glob("*.svg")} == {"cost.svg", "cost-bytes.svg"}
    assert "(not measured)" not in page


def test_plain_rules_and_votes_reckon_with_the_same_faulty_ranks():
    bulyan: Any = cost.plans("bulyan", 45)
    rule: Any = cost.plain_rule("bulyan", 45)
    assert rule.f == 5
    assert {name: plan.rule.outer.f for name, plan in bulyan.items()} == {
        "DETOX": 2,
        "DETOX, 7 buckets": 1,
    }
    assert list(cost.plans("bulyan", 9)) == ["DETOX"]


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "multi_krum", "bulyan"])
def test_what_is_timed_is_what_a_job_computes(rule):
    """The slice that one rank aggregates is that of the whole update."""
    gradients = cost.Gradients(30, 600)
    plan = cost.plans(rule, 30)["DETOX"]
    rank = cost.OneRank(gradients)
    rank.detox(plan)
    votes = gradients.distinct[:10, :20]
    update = rank._update.view(votes.dtype)
    assert update == pytest.approx(plan.rule(votes), abs=1e-6)
    verdict, non_finite = rank.vote()
    assert (len(verdict.winners), verdict.dissenters, non_finite) == (10, (), ())


def test_bytes_are_those_of_the_documentation():
    p, floats = 9, 18_000
    sent = {row["exchange"]: row["sent"] for row in cost.traffic(p, floats)}
    # Fingerprints, accusations, and the record; a first exchange begins with it and random bytes.
    facts = (24 * p + 8 + 2 * RECORD.itemsize + ENTROPY) * (p - 1) / (4 * floats)
    update = (p - 1) / p
    assert sent["allreduce"] == pytest.approx(2 * update, rel=1e-3)
    assert sent["sharded, r = 1"] == pytest.approx(2 * update + facts, rel=1e-3)
    assert sent["sharded, r = 3"] == pytest.approx(1 / 3 - 1 / p + update + facts, rel=1e-3)
    assert sent["sharded, r = 3, 2 witnesses"] > sent["sharded, r = 3"] + 0.5
    assert sent["leaders, r = 3"] > sent["allreduce"]


def test_an_exponent_is_recovered():
    exponent = sys.modules["experiments.cost_page"].exponent
    ranks = [9, 15, 30, 45, 60, 90]
    fitted, error = exponent(ranks, [0.2 * p**1.7 for p in ranks])
    assert fitted == pytest.approx(1.7)
    assert error < 1e-6
    noise = [1.1, 0.9, 1.05, 1.0, 0.95, 1.02]
    noisy, error = exponent(ranks, [0.2 * p**1.7 * f for p, f in zip(ranks, noise, strict=True)])
    assert abs(noisy - 1.7) < 2 * error < 0.2


def test_the_prose_of_the_cost_tells_the_rows():
    """Rows that are known laws: plain rules quadratic, DETOX linear, and slower with few ranks."""
    laws = {"plain": lambda p: p**2, "DETOX": lambda p: 40 * p, "vote alone": lambda p: 10 * p}
    rows = [
        {"by": by, "ranks": p, "floats": 1000, "rule": "krum", "scheme": scheme, "ms": law(p)}
        | {"low": law(p) / p**2, "ratio": law(p) / p**2, "high": law(p) / p**2}
        for by in ("one machine", "one rank")
        for p in (9, 30, 45, 90)
        for scheme, law in laws.items()
    ]
    text = " ".join(sys.modules["experiments.cost_page"].times_section(rows).split())
    assert "the exponent is 2.00 (`krum`) to 2.00 (`krum`) for plain rules, 1.00" in text
    assert "longer than the plain rule in 4 of 8 settings" in text
    assert "one machine, 1,000 floats: 2" in text


def test_variances_are_those_predicted(run, tmp_path: Path):
    page = run("variance", "--ranks", "9", "--draws", "40", "--steps", "5")
    compared = sys.modules["experiments.variance_page"].comparisons(rows_of(tmp_path, "variance"))
    assert len(compared) == 2 * 3 * 3
    for each in compared:
        if each["predicted"] is not None:
            assert each["ratio"] == pytest.approx(each["predicted"], rel=0.3)
            assert each["low"] <= each["ratio"] <= each["high"]
    by_setting = {each["setting"]: each for each in compared if each["estimate"] == "mean"}
    assert by_setting["equal work per rank"]["predicted"] == pytest.approx(3.1, abs=0.1)
    assert by_setting["equal global batch"]["predicted"] == 1
    assert "| digits | 5 | equal global batch | 3 | 24 |" in page
    figure = (tmp_path / "variance.svg").read_bytes()
    assert run("variance", "--draw-only") == page
    assert (tmp_path / "variance.svg").read_bytes() == figure


def test_samples_are_dealt_as_the_sampler_deals_them():
    epoch = [step for step, _ in zip(variance.draws(100, 3, 8), range(4), strict=False)]
    dealt = [index for step in epoch for indices in step for index in indices.tolist()]
    assert len(set(dealt)) == len(dealt) == 96
    assert all(step.shape == (3, 8) for step in epoch)
    with pytest.raises(SystemExit, match="3 batches of 40 need more than the 100 samples"):
        next(variance.draws(100, 3, 40))


def test_the_full_gradient_is_that_of_all_samples():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    samples = variance.CHUNK + 50  # chunks of different sizes
    images, labels = torch.randn(samples, 4), torch.randint(3, (samples,))
    problem = variance.Problem(model, images, labels)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    whole = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert problem.full_gradient() == pytest.approx(whole.numpy(), abs=1e-6)

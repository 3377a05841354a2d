"""Unmodified scripts on real ranks: each job runs several of `tests/scripts`, one after another."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import ROOT, environment

SCRIPTS = ROOT / "tests" / "scripts"
HOROVODRUN = Path(sys.executable).with_name("horovodrun")
ONE_LIAR_PER_GROUP = "reverse(scale=100)@4,5"  # of the groups 0, 2, 4 and 1, 3, 5

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not HOROVODRUN.exists(), reason="needs horovodrun"),
]


def horovodrun(ranks, *command):
    """Run a command on some ranks; return the process and what rank 0 wrote."""
    start = [HOROVODRUN, "--gloo", "-np", str(ranks), sys.executable]
    job = subprocess.run(
        [*start, *map(str, command)], env=environment(), capture_output=True, text=True, timeout=390
    )
    lines = re.findall(r"^\[0\]<std(?:out|err)>:(.*)", job.stdout + job.stderr, re.MULTILINE)
    return job, lines


def run(folder, ranks, cases):
    """Run cases in one job, as `drive.py` describes them; return their results and the output."""
    path = folder / "job.json"
    path.write_text(json.dumps(cases))
    job, lines = horovodrun(ranks, SCRIPTS / "drive.py", path)
    assert job.returncode == 0, job.stdout + job.stderr
    return json.loads(path.with_suffix(".results").read_text()), job, lines


def twice(name, script, rest, second=None):
    """Return two cases: a script without faults and with one liar in every group."""
    flags = ["--group-size", "3"]
    attacked = [*flags, "--attack", ONE_LIAR_PER_GROUP]
    return {name: [flags, script, rest], f"{name} attacked": [attacked, script, second or rest]}


def check_pairs(results):
    """Check that lies change no bit, and that exactly the liars are named."""
    for name, result in results.items():
        assert len({*result["weights"]}) == 1, name
        assert result["steps"] > 0, name
        assert result["abstentions"] == {}, name
        liars = {"4": result["steps"], "5": result["steps"]} if "attacked" in name else {}
        assert result["dissents"] == liars, name
        if "attacked" in name:
            assert result["weights"] == results[name.removesuffix(" attacked")]["weights"], name


def test_pytorch_scripts(tmp_path):
    pytest.importorskip("horovod.torch")
    checkpoints = [["--checkpoint", str(tmp_path / f"{n}.pt")] for n in range(2)]
    results, job, lines = run(
        tmp_path,
        6,
        {
            **twice("digits", "torch_digits.py", ["--fp16-allreduce"]),
            **twice("large batch", "torch_large_batch.py", *checkpoints),
            "resumed": [
                ["--group-size", "3"],
                "torch_large_batch.py",
                [*checkpoints[0], "--epochs", "4"],
            ],
            "synthetic": [["--group-size", "3"], "torch_synthetic.py", []],
            "elastic": [["--group-size", "3"], "torch_elastic.py", []],
        },
    )
    check_pairs(results)
    assert results["large batch"]["steps"] == 15
    assert results["resumed"]["steps"] == 5
    assert results["elastic"]["steps"] == 18  # 48 samples in 2 shares of batches of 4, 3 times
    assert any(re.fullmatch(r"epoch 1: 0\.[78].*", line) for line in lines)
    assert said(job) == [
        "horovod.torch: 6 ranks in 2 groups of 3. The global batch is that of 2 ranks, also where "
        "the script scales its learning rate by hvd.size()",
        "random states of python, NumPy, PyTorch: seeded alike inside each group, by 0 "
        "(--group-seed)",
        "DistributedSampler: deals to 2 groups instead of 6 ranks",
        "random states of PyTorch: differed inside a group; its members now use a seed of its "
        "lowest rank",
        "ElasticSampler: deals to 2 groups instead of 6 ranks",
    ]


def test_tensorflow_scripts(tmp_path):
    pytest.importorskip("horovod.tensorflow")
    results, job, _ = run(
        tmp_path,
        6,
        twice("tape", "tf_tape.py", []) | twice("keras", "keras_fit.py", ["--seed", "5"]),
    )
    check_pairs(results)
    assert results["keras"]["steps"] == 10
    assert "tf.data.Dataset.shard: deals to 2 groups instead of 6 ranks" in said(job)
    even = "the last element is left out, so that 2 groups get equally many"
    assert f"tf.data.Dataset.shard, of 1797 elements: {even}" in said(job)
    assert any(text.startswith("random states of python, NumPy, Tensor") for text in said(job))


def test_the_pytorch_scripts_run_under_plain_horovod_too(tmp_path):
    pytest.importorskip("horovod.torch")
    cases = {
        "torch_digits.py": ["--fp16-allreduce"],
        "torch_large_batch.py": ["--checkpoint", str(tmp_path / "large.pt")],
        "torch_synthetic.py": [],
        "torch_elastic.py": [],
    }
    results, job, _ = run(tmp_path, 2, {name: [None, name, rest] for name, rest in cases.items()})
    assert said(job) == []
    for name, result in results.items():
        assert result["weights"][0] == result["weights"][1], name


def test_the_command_of_the_readme_tells_at_the_end_who_was_at_fault():
    pytest.importorskip("horovod.torch")
    flags = ["--group-size", "3", "--outer", "median", "--attack", "reverse(scale=100)@1"]
    job, _ = horovodrun(3, "-m", "horovod_detox", *flags, SCRIPTS / "torch_synthetic.py")
    assert job.returncode == 0, job.stdout + job.stderr
    ending = r"rank 1 dissented in (\d+) of \1 steps; Adam: \1 steps in \1 exchanges"
    assert re.fullmatch(ending, said(job)[-1])


def test_groups_that_do_not_fit_end_all_ranks_with_one_message():
    pytest.importorskip("horovod.torch")
    script = SCRIPTS / "torch_synthetic.py"
    job, lines = horovodrun(2, "-m", "horovod_detox", "--group-size", "3", script)
    assert job.returncode != 0
    assert said(job) == [lines[0].removeprefix("horovod_detox: ")]
    assert "2 ranks cannot form a group of 3: choose group_size from 1 to 2" in lines[0]
    assert ">:Traceback" not in job.stdout + job.stderr
    assert "Process 0 exit with status code 2." in job.stdout + job.stderr


def said(job):
    """Return what the launcher said on any rank."""
    return re.findall(r"^\[\d+\]<stderr>:horovod_detox: (.*)", job.stderr, re.MULTILINE)

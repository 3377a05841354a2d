"""The benchmark that checks what it times: it goes through."""

import subprocess
import sys

import pytest

from tests.jobs import ROOT, environment

pytest.importorskip("torch")
pytest.importorskip("horovod.runner")

LAUNCH = ROOT / "tests" / "scripts" / "launch.py"


@pytest.mark.timeout(200)
def test_the_benchmark_of_exchanges_names_all_liars_and_nobody_else():
    measures = ["-m", "benchmarks.exchange", "--sizes", "1000", "--repeats", "1"]
    job = subprocess.run(
        [sys.executable, LAUNCH, "3", sys.executable, *measures],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    rows = [line for line in job.stdout.splitlines() if "| 3 | 1,000 |" in line]
    for exchange in ("sharded", "leaders"):
        for liars in ("no liar", "persistent liar", "first-time liar"):
            assert any(f"| {exchange} | {liars} |" in row for row in rows), (exchange, liars, rows)

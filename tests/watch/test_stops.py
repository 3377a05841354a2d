"""Jobs in which a rank stops: who it is, where and why is in the last lines of all other ranks."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests.jobs import ROOT, environment

pytest.importorskip("horovod.runner")

SCRIPT = ROOT / "tests" / "scripts" / "stop.py"
TIMEOUT = 6
LAUNCHERS = 8
"""Seconds that launcher and Horovod may take beyond a limit."""
OF_OTHERS = re.compile("background loop|Terminated|Aborted|terminate called|what\\(\\):")
"""What Horovod and shells write behind our last word."""
SOAK = "SOAK" in os.environ
AT = r"stop\.py:\d+"
LIMIT = rf".*The limit is Detox\(timeout={TIMEOUT}\)"
WAITS = r"{rest} ranks have been waiting for \d+ s in"
TELLS = {
    "sleep": rf"rank {{bad}} has been at {AT} \(time\.sleep\(1000\)\) for \d+ s; {WAITS} "
    rf"the exchange of step 8\.{LIMIT}",
    "stop": rf"rank {{bad}} has been stopped \(SIGSTOP\) for \d+ s, last seen .*{LIMIT}",
    "lock": rf"rank {{bad}} has not answered for \d+ s \(sleeping\), last seen .*{LIMIT}",
    "reduce": rf"rank {{bad}} has been at {AT}.*{WAITS} hvd\.allreduce\('loss'\)\.{LIMIT}",
    "function": rf"rank {{bad}} has been at {AT} \(time\.sleep\(1000\)\) for \d+ s; {WAITS} "
    rf"a function with hvd\.allreduce\('loss'\)\.{LIMIT}",
    "backward": rf"rank {{bad}} has been at {AT} \(time\.sleep\(1000\)\) for \d+ s; {WAITS} "
    rf"hvd\.allreduce\.{LIMIT}",
    "set": rf"rank {{bad}} has been at {AT}.*(rank \d|\d ranks) ha(s|ve) been waiting .*"
    rf"(hvd|the exch){LIMIT}",
    "other": r"ranks have been waiting for each other in different places for \d+ s: "
    r".*rank {bad} waits in hvd\.allreduce\('loss'\).*{rest} ranks wait in the exchange of step 8"
    r".*different paths",
    "error": rf"rank {{bad}} has left after 8 exchanges: ValueError: a bad sample \({AT}\)",
    "exit": rf"rank {{bad}} has left after 8 exchanges: sys\.exit\(0\) \({AT}\)",
    "_exit": r"rank {bad} is gone without a word, last seen .*after \d+ exchanges",
    "kill": r"rank {bad} is gone without a word, last seen .*after \d+ exchanges",
    "term": r"rank {bad} has left after 8 exchanges: SIGTERM",
}
"""What ranks say whose job another has ended."""
WAIT = ("sleep", "stop", "lock", "reduce", "function", "backward", "set", "other")
OF_ONE = {"set": "torch", "other": "torch", "backward": "torch", "function": "keras"}
"""The frontend, for what is tested with one."""

ROWS = [
    ("torch", "sleep", 0, 3),
    ("torch", "stop", 1, 3),
    ("torch", "error", 2, 3),
    ("torch", "exit", 0, 3),
    ("torch", "kill", 0, 3),
    ("torch", "lock", 2, 3),
    ("keras", "_exit", 1, 3),
    ("keras", "reduce", 2, 3),
    ("keras", "function", 1, 3),
    ("keras", "stop", 0, 3),
]
if SOAK:
    ROWS = [
        (frontend, how, bad, ranks)
        for ranks in (3, 6, 9)
        for frontend in ("torch", "keras")
        for how in TELLS
        for bad in (0, 1, ranks - 1)
        if frontend == OF_ONE.get(how, frontend)
        if how != "set" or bad < 2
    ]


def run(ranks, *command):
    """Run a job; return its lines by rank, and the seconds it took."""
    launch = [sys.executable, SCRIPT.with_name("launch.py"), ranks, sys.executable]
    began = time.monotonic()
    job = subprocess.run(
        [*map(str, (*launch, SCRIPT, *command))],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=3000 if SOAK else 200,
    )
    lines = {rank: [] for rank in range(ranks)}
    for rank, line in re.findall(r"^\[(\d+)\]<std(?:out|err)>:(.*)", job.stdout + job.stderr, re.M):
        lines[int(rank)].append(line)
    return job, lines, time.monotonic() - began


def left_over():
    """Return the processes of such jobs that are still there."""
    found = subprocess.run(["pgrep", "-f", SCRIPT], capture_output=True, text=True, check=False)
    return found.stdout.split()


@pytest.mark.timeout(250)
@pytest.mark.parametrize(("frontend", "how", "bad", "ranks"), ROWS)
def test_a_rank_that_stops_is_named_by_all_others(frontend, how, bad, ranks):
    if frontend == "keras":
        pytest.importorskip("keras")
    job, lines, seconds = run(ranks, frontend, how, bad, TIMEOUT)
    assert job.returncode != 0
    text = re.compile(TELLS[how].format(bad=bad, rest=ranks - 1))
    for rank in set(range(ranks)) - {bad}:
        begins = f"horovod_detox: rank {rank} stops waiting: "  # or Horovod was within a line
        said = [line for line in lines[rank] if begins in line]
        assert len(said) == 1, (rank, lines[rank])
        assert text.search(said[0]), said[0]
        after = lines[rank][lines[rank].index(said[0]) + 1 :]
        assert all(OF_OTHERS.search(line) for line in after if line), after
    assert seconds < 60 + (TIMEOUT if how in WAIT else 0) + 2 * LAUNCHERS
    if how == "error":
        assert any("ValueError: a bad sample" in line for line in lines[bad])
        assert "Process name: " + str(bad) in job.stderr  # whom the launcher blames


@pytest.mark.timeout(3100 if SOAK else 250)
@pytest.mark.parametrize("how", ["nap", "late", "pause"])
def test_a_slow_rank_ends_nothing_and_is_no_fault(how):
    job, lines, _ = run(3, "torch", how, 1, 20)
    assert job.returncode == 0, job.stderr
    for rank in range(3):
        (report,) = [line for line in lines[rank] if line.startswith(f"rank {rank}:")]
        assert re.search(r"no fault in any of \d+ steps", report)
        assert report.endswith("latest is 1")
    told = [line for line in lines[0] if line.startswith("rank 1 ")]
    if how != "pause":
        said = told.pop()
        assert re.search(
            r"is slow: the others waited for it in \d+ exchanges, for \d+ s in total of", said
        )
    if how == "nap":
        assert "time.sleep(15)" in told.pop(0)
        assert told.pop() == "rank 1 is back"
    assert told == []

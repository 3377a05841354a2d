"""An elastic job that loses a rank: the others go on from the last commit, with words."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs import ROOT, environment

pytest.importorskip("horovod.runner")
pytest.importorskip("torch")

HOROVODRUN = Path(sys.executable).with_name("horovodrun")
HOSTS = ("localhost", "127.0.0.1", "127.1")
"""Names of this machine; a host that has lost a rank is given up as a whole."""
CHANGED = r"initialised with 3 ranks and now has 2: groups cannot change during a job"


def until(path, text, times, seconds):
    """Return what is written to a file, once a text is there so often, or time is up."""
    end = time.monotonic() + seconds
    while len(re.findall(text, path.read_text())) < times and time.monotonic() < end:
        time.sleep(0.2)
    return path.read_text()


@pytest.mark.timeout(250)
def test_a_job_that_loses_a_rank_resets_and_says_that_groups_cannot_change(tmp_path):
    discovery, output = tmp_path / "hosts.sh", tmp_path / "output"
    discovery.write_text("#!/bin/sh\n" + "".join(f"echo {host}:1\n" for host in HOSTS))
    discovery.chmod(0o755)
    sizes = ["-np", "3", "--min-np", "2", "--max-np", "3"]
    options = ["--host-discovery-script", discovery, "--network-interfaces", "lo"]
    script = [sys.executable, ROOT / "tests" / "scripts" / "elastic_kill.py"]
    with output.open("w") as file:
        job = subprocess.Popen(
            [*map(str, (HOROVODRUN, *sizes, *options, *script))],
            env=environment(HOROVOD_GLOO_TIMEOUT_SECONDS="8"),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            text = until(output, CHANGED, 2, 200)
        finally:
            job.kill()
            job.wait()
    assert len(re.findall("begins with 3 ranks in step 0", text)) == 3, text
    assert len(re.findall("begins with 2 ranks in step 5", text)) == 2, text
    assert len(re.findall(CHANGED, text)) == 2, text
    assert "cannot reshape" not in text

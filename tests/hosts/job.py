"""A job on three hosts, until one of them is lost."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.hosts.network import SSH_PORT, Network

ROOT = Path(__file__).parents[2]
HOSTS = "abc"
GLOO_SECONDS = 5
"""So long Gloo waits for another rank."""


class Job:
    """`train.py` on all hosts, started by horovodrun on host a.

    Args:
        network: of the hosts.
        cases: what `train.py` is to train in.
        slots: ranks on each host.
        options: of horovodrun.

    Attributes:
        folder: what the ranks write.
    """

    def __init__(
        self, network: Network, *cases: str, slots: int = 2, options: Sequence[str] = ()
    ) -> None:
        self._network = network
        self._ranks = range(slots * len(HOSTS))
        self.folder = network.folder / "job"
        self.folder.mkdir()
        horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", *options]
        horovodrun.append("--disable-cache")  # these hosts have not been seen before
        hosts = [f"{name}:{slots}" for name in HOSTS]
        placed = ["-np", str(len(self._ranks)), "-H", ",".join(hosts)]
        ssh = ["-p", str(SSH_PORT), "-i", str(network.folder / "key")]
        script = [sys.executable, "-m", "tests.hosts.train", str(self.folder), *cases]
        environment = {
            **os.environ,
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(GLOO_SECONDS),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{network.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                network.hosts["a"].command(*horovodrun, *placed, *ssh, *script),
                env=environment,
                stdout=log,
                stderr=log,
            )

    @property
    def exit_code(self) -> int | None:
        """Return that of horovodrun, once it has ended."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """Return what horovodrun and the ranks have printed."""
        return "".join(file.read_text() for file in sorted(self.folder.glob("*log")))

    def said(self, rank: int) -> str:
        """Return what a rank has printed."""
        return (self.folder / f"{rank}.log").read_text()

    def found(self, seconds: float = 240) -> list[dict[str, Any]]:
        """Wait until every rank has trained in all cases; return what each found."""
        files = [self.folder / f"{rank}.json" for rank in self._ranks]
        trained = self._wait(lambda: all(map(Path.exists, files)) or self._has_ended(), seconds)
        if not trained or not all(map(Path.exists, files)):
            raise RuntimeError(f"the job has not trained: {self._state()}")
        return [json.loads(file.read_text()) for file in files]

    def errors(self, seconds: float = 90) -> dict[int, str]:
        """Wait until no process is left on any host; return the errors of the ranks."""
        if not self._wait(self._has_ended, seconds):
            raise TimeoutError(f"the job has not ended in {seconds} s: {self._state()}")
        files = {rank: self.folder / f"{rank}.error" for rank in self._ranks}
        return {rank: file.read_text() for rank, file in files.items() if file.exists()}

    def _has_ended(self) -> bool:
        hosts = self._network.hosts.values()
        return self.exit_code is not None and not any(host.processes() for host in hosts)

    def _state(self) -> str:
        left = {name: host.processes() for name, host in self._network.hosts.items()}
        return f"processes: {left}\n{self.log}"

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Return whether the condition came true in time."""
        deadline = time.monotonic() + seconds
        while not (true := condition()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return true

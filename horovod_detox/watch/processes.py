"""The processes of a job on this host, as its kernel knows them.

Linux tells by a file descriptor when a process ends, at once and also if its children live on.
"""

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from horovod_detox.watch.beats import GONE, IN_IO, RUNNING, SLEEPING, STOPPED, Seen

STATES = {"R": RUNNING, "S": SLEEPING, "D": IN_IO, "T": STOPPED}
LEAST_TICKS = 1
"""So many ticks of a processor, a hundredth of a second each, are a movement."""


@dataclass(frozen=True)
class Identity:
    """Tells a process from all others.

    Attributes:
        pid: its number.
        kernel: where this number counts: the boot of a machine, and the namespace in it.
    """

    pid: int
    kernel: str

    @classmethod
    def mine(cls) -> "Identity":
        """Return that of this process."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return cls(os.getpid(), f"{boot} {os.readlink('/proc/self/ns/pid')}")
        except OSError:
            return cls(os.getpid(), "")


class Neighbour:
    """Another process on this host.

    Args:
        pid: its number.

    Raises:
        OSError: when there is none, or it may not be looked at.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._handle = os.pidfd_open(pid)
        self._ticks, self._moved_at = -1, time.monotonic()
        self._killed_before = _killed_for_memory()

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when it ends."""
        return self._handle

    def look(self) -> Seen:
        """Return what it is doing."""
        if self.is_gone():
            killed = _killed_for_memory() > self._killed_before
            hint = "the kernel has killed a process of this container, as memory ran out"
            return Seen(GONE, hint=hint if killed else "")
        try:
            of_main_thread = Path(f"/proc/{self._pid}/task/{self._pid}/stat").read_text()
        except OSError:
            return Seen(GONE)
        # The name before the bracket may have any letters.
        fields = of_main_thread.rpartition(")")[2].split()
        state, ticks = fields[0], int(fields[11]) + int(fields[12])
        if ticks >= self._ticks + LEAST_TICKS:
            self._ticks, self._moved_at = ticks, time.monotonic()
        return Seen(STATES.get(state, SLEEPING), time.monotonic() - self._moved_at)

    def is_gone(self) -> bool:
        """Return whether it has ended."""
        end = select.poll()  # a new one, as each may be asked by one thread at a time
        end.register(self._handle, select.POLLIN)
        return bool(end.poll(0))

    def kill(self) -> None:
        """End it, as one that is stopped cannot end itself."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        """Look at it no more."""
        os.close(self._handle)


def _killed_for_memory() -> int:
    """Return how many processes of this container the kernel has killed for memory; 0: unknown."""
    try:
        (group,) = (
            line.rpartition(":")[2].strip()
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])
    except (OSError, ValueError, KeyError):
        return 0

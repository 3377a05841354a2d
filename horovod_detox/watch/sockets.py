"""Horovod's connections, which Gloo keeps to itself: cutting them ends what is blocked in them.

Horovod has no way to end a collective that waits for a rank which does not come. Its connections
are those that the process has made during `hvd.init()`.
"""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Sockets:
    """TCP connections that this process has made, known by what the kernel calls them."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        os.register_at_fork(after_in_child=self._close_in_child)

    @contextmanager
    def recorded(self, is_gloo: Callable[[], bool]) -> Iterator[None]:
        """Remember those that are made inside of the block, by any thread.

        Args:
            is_gloo: tells after the block whether Horovod uses Gloo. Under MPI they lead to its
                launcher, too, which would end the process with an exit code of its own.
        """
        before = _sockets()
        yield
        if is_gloo():
            self._known |= dict(_sockets().items() - before.items())

    def cut(self) -> bool:
        """Shut them down: what is blocked in them fails at once. Return whether there were any."""
        found = [*self._still_there()]
        for descriptor in found:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        return bool(found)

    def _close_in_child(self) -> None:
        """Close them in a process that was forked, as by a loader of data.

        It would keep them open when this process is killed, and the others would wait on.
        """
        for descriptor in self._still_there():
            with suppress(OSError):
                os.close(descriptor)
        self._known.clear()

    def _still_there(self) -> Iterator[int]:
        for descriptor, inode in self._known.items():
            with suppress(OSError):
                if os.fstat(descriptor).st_ino == inode:
                    yield descriptor


def _sockets() -> dict[int, int]:
    """Return the inodes of this process's connected sockets, by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            about = os.fstat(int(name))
            if stat.S_ISSOCK(about.st_mode) and _is_connected(int(name)):
                found[int(name)] = about.st_ino
    return found


def _is_connected(descriptor: int) -> bool:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        return copy.family in (socket.AF_INET, socket.AF_INET6) and bool(copy.getpeername())
    return False

"""The watch over the job of this process, from Horovod's init to its shutdown."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.waits import ExchangeTimeout, waits
from horovod_detox.watch.leaving import Leaving
from horovod_detox.watch.sockets import Sockets
from horovod_detox.watch.watch import Watch


class Watching:
    """What watches this process's job, whichever frontends it uses."""

    def __init__(self) -> None:
        self._sockets = Sockets()
        self._leaving: Leaving | None = None
        self._watch: Watch | None = None

    def connecting(self, is_gloo: Callable[[], bool]) -> AbstractContextManager[None]:
        """Remember the connections that Horovod makes inside of a block, if it uses Gloo then."""
        return self._sockets.recorded(is_gloo)

    def begin(self, collectives: Collectives, hosts: Sequence[str], timeout: float) -> None:
        """Watch the job; one that is watched already goes on, with another limit.

        Args:
            collectives: of all ranks, which come here together.
            hosts: of the ranks.
            timeout: for so many seconds may others wait for a rank that stands still.
        """
        waits.begin_anew()
        if self._watch is None:
            self._watch = Watch(collectives, hosts, timeout, self._sockets.cut)
        self.limit(timeout)
        self._leaving = self._leaving or Leaving(self._sockets.cut)
        self._leaving.follow(self._watch)

    def limit(self, timeout: float) -> None:
        """Give ranks that stand still another limit, if the job is watched."""
        if self._watch is not None:
            self._watch.limit(timeout)

    def end(self) -> None:
        """Watch no more."""
        if self._watch is not None and self._leaving is not None:
            self._leaving.follow(None)
            self._watch.leave("it has shut Horovod down")
            self._watch.close()
            self._watch = None

    def cause(self, error: BaseException) -> ExchangeTimeout | None:
        """Return what an error of Horovod comes from, if another rank is behind it."""
        return self._leaving.cause(error) if self._leaving is not None else None


watching = Watching()

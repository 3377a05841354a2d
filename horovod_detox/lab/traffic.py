"""How many bytes a rank sends, counted at the seam below the exchange."""

from collections.abc import Callable, Sequence
from typing import Any

from horovod_detox.exchange.collectives import Collectives, Handle


class Counter:
    """Bytes that this rank sent to other ranks since the last `reset`.

    A broadcast counts as sent by its root to every other rank, an allreduce as one in a ring.
    """

    def __init__(self) -> None:
        self.sent = 0.0

    def reset(self) -> None:
        """Forget what was sent."""
        self.sent = 0.0

    def wrap(self, make: Callable[..., Collectives]) -> Callable[..., Collectives]:
        """Return what makes the same collectives, counted here."""
        return lambda *args, **kwargs: _Counted(make(*args, **kwargs), self)


class _Counted:
    """The seam of one rank, which counts."""

    def __init__(self, collectives: Collectives, counter: Counter) -> None:
        self.rank, self.size = collectives.rank, collectives.size
        self._collectives = collectives
        self._counter = counter

    def allgather(self, name: str, facts: Any, *args: Any, **kwargs: Any) -> Handle:
        self._counter.sent += facts.nbytes * (self.size - 1)
        return self._collectives.allgather(name, facts, *args, **kwargs)

    def alltoall(self, name: str, parts: Sequence[Any], *args: Any, **kwargs: Any) -> Handle:
        self._counter.sent += sum(p.nbytes for rank, p in enumerate(parts) if rank != self.rank)
        return self._collectives.alltoall(name, parts, *args, **kwargs)

    def broadcast(self, name: str, words: Any, root: int, *args: Any, **kwargs: Any) -> Handle:
        self._counter.sent += words.nbytes * (self.size - 1) * (root == self.rank)
        return self._collectives.broadcast(name, words, root, *args, **kwargs)

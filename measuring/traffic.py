"""What a rank sends, noted at the seam below the exchange: for measurements and for tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_detox.arrays.namespaces import Words
from horovod_detox.exchange.collectives import Collectives, Handle


@dataclass(frozen=True)
class Call:
    """One collective, as one rank called it.

    Attributes:
        kind: `allgather`, `allgather_words`, `alltoall` or `broadcast`.
        name: as the exchange calls it.
        sent: `(p,)` bytes to each rank, none to itself. A broadcast counts as sent by its root to
            every other rank, an allgather as sent by each.
        words: those among them that are no facts, likewise.
    """

    kind: str
    name: str
    sent: np.ndarray
    words: np.ndarray


class Traffic:
    """The collectives that this rank called since the last `reset`.

    Attributes:
        calls: in their order.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def reset(self) -> None:
        """Forget what was called."""
        self.calls.clear()

    @property
    def sent(self) -> float:
        """Return the bytes that this rank sent to others."""
        return float(sum(call.sent.sum() for call in self.calls))

    def watch(self, collectives: Collectives) -> Collectives:
        """Return the same collectives, noted here."""
        return _Watched(collectives, self)

    def wrap(self, make: Callable[..., Collectives]) -> Callable[..., Collectives]:
        """Return what makes the same collectives, noted here."""
        return lambda *args, **kwargs: self.watch(make(*args, **kwargs))


class _Watched:
    """The seam of one rank, which is watched."""

    def __init__(self, collectives: Collectives, traffic: Traffic) -> None:
        self.rank, self.size = collectives.rank, collectives.size
        self._collectives = collectives
        self._traffic = traffic

    def allgather(self, name: str, facts: np.ndarray) -> Handle:
        self._note("allgather", name, facts.nbytes, [0] * self.size)
        return self._collectives.allgather(name, facts)

    def allgather_words(self, name: str, facts: np.ndarray, words: Words) -> Handle:
        self._note("allgather_words", name, facts.nbytes, [words.nbytes] * self.size)
        return self._collectives.allgather_words(name, facts, words)

    def alltoall(
        self, name: str, facts: np.ndarray, parts: Sequence[Words], spare: Words | None = None
    ) -> Handle:
        self._note("alltoall", name, facts.nbytes, [part.nbytes for part in parts])
        return self._collectives.alltoall(name, facts, parts, spare)

    def add_facts(self, name: str, facts: np.ndarray) -> Handle:
        self._note("sum", name, facts.nbytes, [0] * self.size)
        return self._collectives.add_facts(name, facts)

    def add_words(self, name: str, words: Words) -> Handle:
        self._note("sum", name, 0, [words.nbytes] * self.size)
        return self._collectives.add_words(name, words)

    def broadcast(self, name: str, words: Words, root: int) -> Handle:
        self._note("broadcast", name, 0, [words.nbytes * (root == self.rank)] * self.size)
        return self._collectives.broadcast(name, words, root)

    def _note(self, kind: str, name: str, facts: int, words: list[Any]) -> None:
        others = np.arange(self.size) != self.rank
        of_words = np.array(words) * others
        self._traffic.calls.append(Call(kind, name, of_words + facts * others, of_words))

"""The communication seam: what every exchange needs of the ranks, and no more."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from horovod_detox.arrays.namespaces import Words, aligned_empty

NOTHING = np.empty(0, np.int64)
"""No facts."""


class Message(NamedTuple):
    """What one rank sends at once.

    Attributes:
        facts: `(n,)` of int64, in main memory.
        words: `(w,)` of the frontend's kind.
    """

    facts: np.ndarray
    words: Words


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> Any:
        """Return the result; raise ExchangeTimeout when it does not come in time."""
        ...

    def is_done(self) -> bool:
        """Return whether `wait` is known to return at once; not to be asked after it."""
        ...


class Collectives(Protocol):
    """The collectives of one set of p ranks; all ranks make the same calls, by name, in any order.

    While ranks have joined, nothing but sums may be called; Horovod crashes, or `wait()` raises
    RanksJoined on all others.

    Nothing that was passed may be written to before `wait()` has returned. Of what is received,
    facts are nobody else's; words may be views of something larger.
    """

    rank: int
    size: int

    def allgather(self, name: str, facts: np.ndarray) -> Handle:
        """Concatenate the ranks' facts: `(n_i,)` of int64 -> `(sum of n_i,)`."""
        ...

    def allgather_words(self, name: str, facts: np.ndarray, words: Words) -> Handle:
        """Send facts and words, of any lengths, to all: -> messages by sender."""
        ...

    def alltoall(
        self, name: str, facts: np.ndarray, parts: Sequence[Words], spare: Words | None = None
    ) -> Handle:
        """Send the facts to all and `parts[j]` to rank j: -> messages by sender.

        Parts may be empty and differ in length. In `spare`, words of no further use, there may be
        room to join what is sent; None: in new memory.
        """
        ...

    def add_facts(self, name: str, facts: np.ndarray) -> Handle:
        """Add up the ranks' facts, with zeros for those that have joined: `(n,)` of int64."""
        ...

    def add_words(self, name: str, words: Words) -> Handle:
        """Add up words as int64, likewise: `(w,)` of the frontend's kind."""
        ...

    def broadcast(self, name: str, words: Words, root: int) -> Handle:
        """Overwrite flat int64 words of the frontend's kind by those of rank `root`."""
        ...


class RanksJoined(RuntimeError):
    """Some ranks have joined: until all have, nothing but sums is possible, see `joined.py`."""


def join(
    facts: np.ndarray, parts: Sequence[np.ndarray], spare: np.ndarray | None = None
) -> tuple[np.ndarray, list[int]]:
    """Join the messages to several ranks, for transports that carry one array.

    Args:
        facts: `(n,)`, for each of them.
        parts: the words for each.
        spare: memory for the result, if it is large enough.

    Returns:
        `(sum of lengths,)`, and the length of each message.

    >>> joined, lengths = join(np.array([7]), [np.array([1, 2]), np.array([], int)])
    >>> joined.tolist(), lengths
    ([1, 2, 7, 1, 2, 1, 0, 7], [5, 3])
    >>> [message.words.tolist() for message in split(joined)]
    [[1, 2], []]
    """
    lengths = [2 + len(facts) + len(part) for part in parts]
    room = spare if spare is not None and len(spare) >= sum(lengths) else None
    if room is None:
        room = aligned_empty((sum(lengths),), "int64")
    pieces = [piece for part in parts for piece in ((len(facts), len(part)), facts, part)]
    return np.concatenate(pieces, out=room[: sum(lengths)]), lengths


def split(joined: np.ndarray) -> Iterator[Message]:
    """Take apart what was joined, by one rank after another."""
    while len(joined):
        facts, words = joined[:2].tolist()
        middle, stop = 2 + facts, 2 + facts + words
        yield Message(joined[2:middle].copy(), joined[middle:stop])
        joined = joined[stop:]

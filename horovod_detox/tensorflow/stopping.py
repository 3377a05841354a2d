"""Which ranks want to end a training: told beside the messages of exchanges, at no cost.

A rank that left the loop by itself would leave all others waiting. So it trains on, says what it
wants with the messages of its next exchange, and all ranks decide alike.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from horovod_detox.exchange.collectives import Message
from horovod_detox.vote.groups import Groups

WANTS_TO_STOP = np.frombuffer(
    hashlib.blake2b(b"this rank wants to end the training", digest_size=8).digest(), np.int64
)
"""The last of the facts of a rank that wants to; others say nothing of it, which takes no word."""


class Wishes:
    """What this rank wants, and what it has heard of the others.

    Attributes:
        to_stop: whether this rank wants to end the training.
    """

    def __init__(self) -> None:
        self.to_stop = False
        self._heard: frozenset[int] = frozenset()

    def tell(self, facts: np.ndarray) -> np.ndarray:
        """Return the facts of a message, and behind them what this rank wants.

        >>> wishes = Wishes()
        >>> len(wishes.tell(np.array([7, 8])))
        2
        """
        return np.concatenate([facts, WANTS_TO_STOP]) if self.to_stop else facts

    def hear(self, messages: Iterable[Message]) -> list[Message]:
        """Return the messages as they were without wishes; note who wants to stop, by sender."""
        received = list(messages)
        wanting = {i for i, message in enumerate(received) if _wants(message.facts)}
        self._heard |= wanting
        return [
            message._replace(facts=message.facts[:-1]) if i in wanting else message
            for i, message in enumerate(received)
        ]

    def take(self) -> frozenset[int]:
        """Return who was heard to want it since the last call, as the ranks are counted there."""
        heard, self._heard = self._heard, frozenset()
        return heard

    def forget(self) -> None:
        """Want nothing, and forget what was heard."""
        self.to_stop, self._heard = False, frozenset()


wishes = Wishes()
"""Those of this process."""


def most_want(groups: Groups, wanting: Iterable[int]) -> bool:
    """Return whether most groups want it: those most of whose ranks do.

    >>> groups = Groups(((0, 1, 2), (3, 4, 5), (6, 7, 8)))
    >>> most_want(groups, [0, 1, 3, 4]), most_want(groups, [0, 1, 2, 3, 6])
    (True, False)
    """
    return 2 * groups.with_most_of(set(wanting)) > len(groups)


def _wants(facts: Sequence[int] | np.ndarray) -> bool:
    return len(facts) > 0 and facts[-1] == WANTS_TO_STOP[0]

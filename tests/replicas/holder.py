"""What a rank of the tests holds: small arrays by key."""

from dataclasses import dataclass, field

import numpy as np

from horovod_detox.replicas.files import Files
from horovod_detox.replicas.pieces import BUFFERS, OPTIMIZER, PARAMETERS, RANDOM, Piece
from horovod_detox.vote.groups import Groups

THREES = Groups(((0, 1, 2), (3, 4, 5)))


@dataclass
class Holder:
    """What one rank holds, by key."""

    rank: int
    held: dict[str, np.ndarray] = field(default_factory=dict)
    sent: dict[str, np.ndarray] = field(default_factory=dict)
    batch: int | None = 1
    reads: int = 0
    files: Files = field(default_factory=Files)

    def __post_init__(self):
        for kind in (PARAMETERS, OPTIMIZER, BUFFERS, RANDOM):
            self.held[f"{kind}/x"] = np.arange(5)

    def pieces(self):
        return [self._piece(key) for key in self.held]

    def _piece(self, key):
        kind, _, name = key.partition("/")

        def read():
            self.reads += 1
            is_second = self.reads > len(self.held)  # as when a donor sends what it had digested
            return self.sent.get(key, self.held[key]) if is_second else self.held[key]

        def write(words):
            self.held[key] = words.copy()

        return Piece(kind, name, read, write)

    def digest_of_batch(self):
        return None if self.batch is None else np.array([self.batch, 1])


def healed(holders, key):
    return all((holder.held[key] == np.arange(5)).all() for holder in holders)

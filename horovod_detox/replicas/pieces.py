"""What a rank holds that other ranks hold, too, piece by piece."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from horovod_detox.arrays.namespaces import Words, view
from horovod_detox.arrays.nh import WORDS
from horovod_detox.vote.fingerprint import Fingerprints

PARAMETERS = "parameters"
OPTIMIZER = "optimizer"
BUFFERS = "buffers"
RANDOM = "random"
OF_ALL = (PARAMETERS, OPTIMIZER)
"""What is equal on all ranks that train together; the rest is inside a group."""


@dataclass(frozen=True)
class Piece:
    """Something that is read and written as a whole: a tensor, or the state of a generator.

    Attributes:
        kind: PARAMETERS, OPTIMIZER, BUFFERS or RANDOM.
        name: tells it from all others of its kind, the same on every rank.
        read: returns its bits: `(w,)` words of the frontend's kind, not to be written to.
        write: overwrites it by such words.
    """

    kind: str
    name: str
    read: Callable[[], Words]
    write: Callable[[Words], None]

    @property
    def key(self) -> str:
        """Return what it is called among pieces of all kinds."""
        return f"{self.kind}/{self.name}"

    @property
    def is_of_all(self) -> bool:
        """Return whether all ranks hold it, and not only those of a group."""
        return self.kind in OF_ALL


def digests_of(words: Sequence[Words], fingerprints: Fingerprints) -> np.ndarray:
    """Digest what was read of pieces: `(pieces, WORDS)` of int64."""
    digests = np.zeros((len(words), WORDS), np.int64)
    on_device: dict[str, list[int]] = {}
    for i, each in enumerate(words):
        if len(each):
            on_device.setdefault(str(view(each).device), []).append(i)
    for some in on_device.values():
        digests[some] = fingerprints.of_each([words[i] for i in some], [0] * len(some))
    return digests


def digest_of_all(digests: np.ndarray) -> np.ndarray:
    """Digest digests: `(n, WORDS) -> (WORDS,)` of int64; never zeros.

    >>> digest_of_all(np.zeros((0, WORDS), np.int64)).any()
    np.True_
    """
    bits = hashlib.blake2b(np.ascontiguousarray(digests).tobytes(), digest_size=8 * WORDS)
    return np.frombuffer(bits.digest(), np.int64)

"""What a vote compares: bits where copies are at hand, fingerprints of their slices where not."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from horovod_detox.arrays.namespaces import Copy, Words, namespace, to_numpy, view
from horovod_detox.arrays.nh import WORDS, Key

FUNCTIONS = ("nh", "blake3")
"""What digests slices."""


def slice_bounds(length: int, parts: int) -> list[tuple[int, int]]:
    """Cut `length` elements into `parts` contiguous slices whose lengths differ by one at most.

    >>> slice_bounds(10, 4)
    [(0, 3), (3, 6), (6, 8), (8, 10)]
    """
    size, longer = divmod(length, parts)
    edges = [part * size + min(part, longer) for part in range(parts + 1)]
    return list(pairwise(edges))


class Fingerprints:
    """Digests of slices in one step, keyed by a secret of the job.

    The raw bits count: NaN equals the same NaN, -0.0 differs from +0.0. All ranks digest alike,
    whether their words are in main memory or on an accelerator.

    `nh` is fast, and a theorem bounds how likely two slices have the same digest that were chosen
    without the secret; see `arrays.nh`. `blake3` is for ranks whose code may lie, which know the
    secret: it is keyed, and bound to the step and to the place of the slice.

    Args:
        secret: 32 bytes that the ranks have in common.
        step: the number of the exchange.
        function: `nh` or `blake3`.
    """

    def __init__(self, secret: bytes, step: int, function: str = "nh") -> None:
        of_step = hashlib.blake2b(step.to_bytes(8), key=secret, digest_size=32).digest()
        self._function = function
        self._key, self._nh_key = of_step, Key(of_step)

    def of(self, copy: Copy, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
        """Digest slices of some words: `(w,) -> (slices, WORDS)` of int64."""
        starts = [start for start, _ in bounds]
        return self.of_each([copy[start:stop] for start, stop in bounds], starts)

    def of_each(self, slices: Sequence[Words], starts: Sequence[int]) -> np.ndarray:
        """Digest slices, each of flat words that start somewhere: `-> (slices, WORDS)` of int64."""
        return self.look(slices, starts)[0]

    def look(
        self, slices: Sequence[Words], starts: Sequence[int], dtype: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Digest slices, and see on the way whether their numbers are finite, if it is easy.

        Args:
            slices, starts: as of `of_each`.
            dtype: the numbers that the words hold, where it is one type.

        Returns:
            `(slices, WORDS)` of int64, and `(slices,)` of bool: False if it was not easy.
        """
        if not slices:
            return np.empty((0, WORDS), np.int64), np.empty(0, bool)
        words = [view(part) for part in slices]
        if self._function == "blake3":
            digests = [self._blake3(*each) for each in zip(words, starts, strict=True)]
            return np.stack(digests), np.zeros(len(words), bool)
        return namespace(words[0]).digests(words, self._nh_key, dtype)

    def _blake3(self, words: Words, start: int) -> np.ndarray:
        from blake3 import blake3  # pyright: ignore[reportMissingImports]

        hasher = blake3(start.to_bytes(8), key=self._key)
        hasher.update(to_numpy(words).view(np.uint8).data)
        return np.frombuffer(hasher.digest(length=8 * WORDS), np.int64)


def labels(copies: Sequence[Copy], bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Compare the bits of copies slice by slice: n times `(w,) -> (n, slices)` of int64.

    Two slices have the same label if and only if they are the same: that of the first such copy.
    """
    found = np.empty((len(copies), len(bounds)), np.int64)
    firsts: list[int] = []  # copies that have slices which none before has
    for i, copy in enumerate(copies):
        found[i] = i
        for j in firsts:
            is_new = found[i] == i
            if not is_new.any():
                break
            found[i, is_new & _same(copies[j], copy, bounds)] = j
        if (found[i] == i).any():
            firsts.append(i)
    return found


def digest(data: np.ndarray) -> np.ndarray:
    """Digest the bytes of an array with BLAKE2b, without any secret: `(WORDS,)` of int64."""
    bits = np.ascontiguousarray(data).ravel().view(np.uint8)
    return np.frombuffer(hashlib.blake2b(bits.data, digest_size=8 * WORDS).digest(), np.int64)


def _same(a: Copy, b: Copy, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Say of which slices two copies hold the same bits: `(slices,)` of bool."""
    if a is b:
        return np.ones(len(bounds), bool)
    a, b = view(a), view(b)
    return namespace(a).same(a, b, bounds)

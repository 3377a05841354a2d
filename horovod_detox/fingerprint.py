"""Digests of slices: two copies of a slice are the same if and only if their raw bits are."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xxhash

from horovod_detox.arrays import to_numpy

WORDS = 2
"""A fingerprint is this many 64-bit words."""


def slice_bounds(length: int, parts: int) -> list[tuple[int, int]]:
    """Cut `length` elements into `parts` contiguous slices whose lengths differ by one at most.

    >>> slice_bounds(10, 4)
    [(0, 3), (3, 6), (6, 8), (8, 10)]
    """
    size, longer = divmod(length, parts)
    edges = [part * size + min(part, longer) for part in range(parts + 1)]
    return list(pairwise(edges))


def fingerprint(copy, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Digest every slice of a flat array with XXH3-128: `(w,) -> (slices, WORDS)` of int64.

    The raw bits count: NaN equals the same NaN, -0.0 differs from +0.0. XXH3 finds faults; it
    does not stop somebody who forges collisions.
    """
    array = to_numpy(copy)
    digests = b"".join(
        xxhash.xxh3_128_digest(array[start:stop].view(np.uint8).data) for start, stop in bounds
    )
    return np.frombuffer(digests, dtype=np.int64).reshape(len(bounds), WORDS)

"""Digests of slices: two copies of a slice are the same if and only if their raw bits are."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from horovod_detox.arrays.namespaces import Copy, Words, namespace, view

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


def fingerprint(copy: Copy, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Digest every slice of some words: `(w,) -> (slices, WORDS)` of int64; see `fingerprints`."""
    return fingerprints([copy[start:stop] for start, stop in bounds])


def fingerprints(slices: Sequence[Words]) -> np.ndarray:
    """Digest slices, each of flat words: n times `(w,) -> (n, WORDS)` of int64.

    The raw bits count: NaN equals the same NaN, -0.0 differs from +0.0. Words in main memory are
    digested with XXH3-128, those on an accelerator where they are, see `device_digests`; the ranks
    of a job hold theirs alike. Both find faults; they do not stop somebody who forges collisions.
    """
    if not slices:
        return np.empty((0, WORDS), np.int64)
    words = [view(part) for part in slices]
    return namespace(words[0]).digests(words)

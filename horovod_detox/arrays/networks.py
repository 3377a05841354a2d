"""Sorting networks: which values to compare so that those of some ranks end in their places."""

from collections.abc import Iterator
from functools import cache


@cache
def network(n: int, ranks: range) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return the comparators that put the wanted ranks of n values into place.

    Each is `(i, j, low, high)`: the smaller value goes to i, the larger to j, where `low` and
    `high` say which of the two is still needed.
    """
    needed, kept = set(ranks), []
    for i, j in reversed(list(_odd_even_merge(n))):
        if i in needed or j in needed:
            kept.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return tuple(reversed(kept))


def _odd_even_merge(n: int) -> Iterator[tuple[int, int]]:
    """Yield Batcher's comparators for n values (Knuth, volume 3, algorithm 5.2.2M)."""
    merged = 1
    while merged < n:
        stride = merged
        while stride:
            for start in range(stride % merged, n - stride, 2 * stride):
                for i in range(start, min(start + stride, n - stride)):
                    if i // (2 * merged) == (i + stride) // (2 * merged):
                        yield i, i + stride
            stride //= 2
        merged *= 2

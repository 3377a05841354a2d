"""Sorting networks: order the votes in every column by elementwise minimum and maximum."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from horovod_detox.aggregators.columns import Rows
from horovod_detox.arrays import namespace


def sort(rows: Rows, ranks: range | None = None) -> list[Any]:
    """Return the `ranks` smallest values of every column: `(n, b)` gives len(ranks) times `(b,)`.

    Without ranks, all are returned, smallest first. The rows are not written to.
    """
    xp, n = namespace(rows[0]), len(rows)
    ranks = range(n) if ranks is None else ranks
    wires = [xp.copy(row) for row in rows]
    spare = xp.copy(rows[0])
    for i, j, low, high in network(n, ranks):
        a, b = wires[i], wires[j]
        if low and high:
            wires[i], wires[j], spare = xp.minimum(a, b, out=spare), xp.maximum(a, b, out=b), a
        elif low:
            wires[i] = xp.minimum(a, b, out=a)
        else:
            wires[j] = xp.maximum(a, b, out=b)
    return [wires[rank] for rank in ranks]


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

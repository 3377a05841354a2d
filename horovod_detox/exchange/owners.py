"""What the owners of slices do for all: they aggregate their columns and share the results."""

from collections.abc import Sequence

import numpy as np

from horovod_detox.aggregators import Aggregator
from horovod_detox.arrays.namespaces import Words
from horovod_detox.exchange.aggregation import Columns, add_up, aggregate_votes
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.momentum import Means
from horovod_detox.exchange.witnesses import majority


def aggregate_slices(
    collectives: Collectives,
    rule: Aggregator | None,
    parts: Sequence[Columns],
    results: Sequence[Words],
    holders: np.ndarray,
) -> tuple[Means, set[int]]:
    """Compute the slices that this rank holds; return new means, and who erred in a Gram matrix.

    Args:
        collectives: of the p ranks.
        rule: fitted to the votes; None: the update is NaN.
        parts: the votes on each of the slices.
        results: `(w,)` words of each, written to.
        holders: `(1 + w, p)`: who holds each slice, its owner first.
    """
    wrong: set[int] = set()

    def total(grams: np.ndarray) -> np.ndarray:
        upper = np.triu_indices(grams.shape[-1])  # they are symmetric
        words = np.ascontiguousarray(grams[:, *upper]).view(np.int64)
        gathered = collectives.allgather("grams", words.ravel()).wait()
        true, liars = majority(gathered.reshape(collectives.size, *words.shape), holders)
        wrong.update(liars)
        of_slices = np.empty((len(true), *grams.shape[1:]))
        of_slices[:, *upper] = of_slices[:, *upper[::-1]] = true.view(np.float64)
        return add_up(of_slices)

    means = aggregate_votes(rule, parts, results, total)
    return means, wrong


def broadcast_slices(
    collectives: Collectives, update: Words, bounds: Sequence[tuple[int, int]], name: str
) -> list[Handle]:
    """Let every owner's slice of the update be on its way to all, in place."""
    return [
        collectives.broadcast(f"{name}.{owner}", update[start:stop], owner)
        for owner, (start, stop) in enumerate(bounds)
        if start < stop
    ]

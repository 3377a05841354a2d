"""From copies to votes to the update, in words: the steps that all exchanges share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_detox.aggregators import Aggregator
from horovod_detox.aggregators.columns import finite_rows
from horovod_detox.arrays import like, namespace, view
from horovod_detox.layout import Layout


def assemble(copies: Sequence[Any], bounds: Sequence[tuple[int, int]]) -> Any:
    """Return the vote whose slice i is that of `copies[i]`, each `(w,)` words."""
    if all(copy is copies[0] for copy in copies):
        return copies[0]
    vote = namespace(copies[0]).copy(copies[0])
    for copy, (start, stop) in zip(copies, bounds, strict=True):
        vote[start:stop] = copy[start:stop]
    return vote


def finite(layout: Layout, vote: Any) -> bool:
    """Return whether every element of a vote, `(w,)` words, is a finite number."""
    return all(
        finite_rows(buffer[None]).all() for buffer in layout.typed(view(vote)) if len(buffer)
    )


def aggregate_votes(
    rule: Aggregator | None, layout: Layout, votes: Sequence[Any], previous: Any | None = None
) -> Any:
    """Reduce finite votes to the update: n times `(w,)` words -> `(w,)` words.

    Args:
        rule: fitted to n votes; None: the update is NaN. It sees all parameters as one vector.
        layout: what the words are.
        votes: the finite votes; with `rule` None, any words to take kind and device from.
        previous: `(w,)` words of the previous update.
    """
    words = view(votes[0])
    update = namespace(words).empty((layout.words,), words, "int64")
    update[:] = 0
    result: Any = np.nan
    if rule is not None:
        centre = None if previous is None else _matrix(layout, [previous])[0]
        result = rule.reduce(_matrix(layout, votes), previous=centre)
    start = 0
    for buffer in layout.typed(update):
        buffer[:] = result if rule is None else result[start : start + len(buffer)]
        start += len(buffer)
    return like(votes[0], update)


def _matrix(layout: Layout, votes: Sequence[Any]) -> Any:
    """Return the votes as one matrix of numbers: `(n, d)`, of one dtype that holds all."""
    dtypes = {segment.dtype for segment in layout.segments}
    dtype = "float64" if "float64" in dtypes else "float32"
    words = view(votes[0])
    length = sum(segment.length for segment in layout.segments)
    matrix = namespace(words).empty(
        (len(votes), length), words, dtypes.pop() if len(dtypes) == 1 else dtype
    )
    for row, vote in zip(matrix, votes, strict=True):
        start = 0
        for buffer in layout.typed(view(vote)):
            row[start : start + len(buffer)] = buffer
            start += len(buffer)
    return matrix

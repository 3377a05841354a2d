"""Column-wise work on the votes, a block of columns at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from horovod_detox.arrays import dtype_name, namespace

Rows = Sequence[Any] | Any
"""Votes in some columns: an `(m, b)` array, or m arrays `(b,)`."""

_LARGEST = 1e145
"""Beyond this, the squared length of a float64 vote of 10^15 elements could overflow."""


def slices(width: int, block: int) -> Iterator[slice]:
    """Yield the slices that cut `width` columns into blocks."""
    for start in range(0, width, block):
        yield slice(start, min(start + block, width))


def working_dtype(values: Any) -> str:
    """Return the element type to compute in: float64 for float64, float32 for narrower ones."""
    return "float64" if dtype_name(values) == "float64" else "float32"


@np.errstate(over="ignore", invalid="ignore")
def by_block(
    combine: Callable[[Rows, Any], Any],
    values: Any,
    previous: Any = None,
    rows: int | None = None,
    dtype: str | None = None,
) -> Any:
    """Apply a column-wise function to every block of columns.

    Args:
        combine: turns the votes and the previous result in some columns, `(n, b)` and `(b,)` or
            None, into the result in these columns: `(b,)`, or `rows` times `(b,)`.
        values: `(n, d)`; never written to.
        previous: `(d,)` or None.
        rows: the number of rows of the result; None: it is one vector.
        dtype: element type of the result; None: that of the values.

    Returns:
        `(d,)` or `(rows, d)`, with +0 for -0, so that the order of equal votes changes no bits.
    """
    xp, working, width = namespace(values), working_dtype(values), values.shape[1]
    shape = (width,) if rows is None else (rows, width)
    result = xp.empty(shape, values, dtype or dtype_name(values))
    for columns in slices(width, xp.block):
        block = xp.cast(values[:, columns], working)
        before = None if previous is None else xp.cast(previous[columns], working)
        combined = combine(block, before)
        if rows is None:
            result[columns] = combined + 0.0
        else:
            for i, row in enumerate(combined):
                result[i, columns] = row + 0.0
    return result


def total(rows: Rows) -> Any:
    """Add the rows up in their order: `(m, b) -> (b,)`."""
    result = namespace(rows[0]).copy(rows[0])
    for i in range(1, len(rows)):
        result += rows[i]
    return result


def mean(rows: Rows) -> Any:
    """Average the rows, added up in their order: `(m, b) -> (b,)`."""
    return rows[0] if len(rows) == 1 else namespace(rows[0]).divide(total(rows), len(rows))


def weighted(weights: np.ndarray) -> Callable[..., list[Any]]:
    """Return the function that combines n rows linearly to m, given `(m, n)` weights.

    It takes the rows, `(n, b)`, and the previous result, `(b,)` or None, and returns m rows
    `(b,)`. What the weights of a row lack to one goes to the previous result, or to the origin.
    Every element is computed by itself, in the order of the rows: neither the width of the block
    nor the framework changes a bit. Rows of weight zero are not read.
    """
    recipes = [_recipe(row) for row in weights]

    def combine(rows: Rows, previous: Any = None) -> list[Any]:
        return [
            mean([rows[i] for i in votes])
            if shares is None
            else _sum(rows, votes, shares, previous)
            for votes, shares in recipes
        ]

    return combine


def _recipe(weights: np.ndarray) -> tuple[list[int], list[float] | None]:
    """Return which rows to use and their weights, then that of the previous result; None: mean."""
    votes = np.flatnonzero(weights)
    used = weights[votes]
    if len(votes) and np.all(used == used[0]) and abs(used.sum() - 1) < 1e-12:
        return votes.tolist(), None
    return votes.tolist(), [*used.tolist(), 1 - float(used.sum())]


def _sum(rows: Rows, votes: list[int], shares: list[float], previous: Any) -> Any:
    xp = namespace(rows[0])
    result = xp.cast(rows[0] * 0.0, "float64")
    for vote, share in zip(votes, shares, strict=False):
        result += xp.cast(rows[vote], "float64") * share
    if previous is not None:
        result += xp.cast(previous, "float64") * shares[-1]
    return xp.cast(result, working_dtype(rows[0]))


@np.errstate(over="ignore", invalid="ignore")
def finite_rows(values: Any) -> np.ndarray:
    """Say which votes can be aggregated: `(n, d) -> (n,)` of bool.

    A vote cannot if an element is NaN or infinite, or so large, beyond 1e145 in float64, that
    squared distances would overflow.
    """
    if isinstance(values, np.ndarray) and values.dtype in (np.float32, np.float64):
        # One fast pass; only a vote that is not short in this sense needs the second look.
        short = np.array([np.dot(row, row) < _LARGEST**2 for row in values], bool)
        if short.all():
            return short
    xp, working = namespace(values), working_dtype(values)
    largest = _LARGEST if working == "float64" else np.inf
    finite = np.ones(len(values), bool)
    for columns in slices(values.shape[1], xp.block):
        least, greatest = xp.bounds(xp.cast(values[:, columns], working))
        finite &= (least > -largest) & (greatest < largest)
    return finite

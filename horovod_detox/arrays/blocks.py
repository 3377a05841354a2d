"""Column-wise work on the votes, a block of columns at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np

from horovod_detox.arrays.namespaces import (
    Kernels,
    Namespace,
    Vector,
    Votes,
    dtype_name,
    namespace,
    to_numpy,
)

T = TypeVar("T")
Rows = Sequence[Any] | Any
"""Votes, or what became of them, in some columns: m arrays `(b,)`, or one `(m, b)`."""

LARGEST = 1e145
"""Beyond this, the squared length of a float64 vote of 10^15 elements could overflow."""


def slices(width: int, block: int) -> Iterator[slice]:
    """Yield the slices that cut `width` columns into blocks."""
    for start in range(0, width, block):
        yield slice(start, min(start + block, width))


def kernels(rows: Rows) -> Kernels:
    """Return the column kernels for rows of this kind."""
    return namespace(rows[0]).kernels


def for_blocks(work: Callable[[slice], T], width: int, block: int, xp: Namespace) -> list[T]:
    """Call `work(columns)` for every block of columns; return the results in their order."""
    blocks = list(slices(width, block))
    threads = xp.threads if len(blocks) > 1 else 1
    if threads == 1:
        return [work(columns) for columns in blocks]
    share = -(-len(blocks) // threads)
    shares = [blocks[i : i + share] for i in range(0, len(blocks), share)]
    parts = _pool(threads).map(lambda share: [work(columns) for columns in share], shares)
    return [result for part in parts for result in part]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "horovod_detox columns")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no such threads


def working_dtype(values: Rows) -> str:
    """Return the element type to compute in: float64 for float64, float32 for narrower ones."""
    return "float64" if dtype_name(values[0]) == "float64" else "float32"


def by_block(
    combine: Callable[[Rows, Vector | None], Any],
    values: Rows,
    previous: Vector | None = None,
    rows: int | None = None,
    dtype: str | None = None,
) -> Any:
    """Apply a column-wise function to every block of columns.

    Args:
        combine: turns the votes and the previous result in some columns, n times `(b,)` and
            `(b,)` or None, into the result in these columns: `(b,)`, or `rows` times `(b,)`.
        values: n times `(d,)`; never written to.
        previous: `(d,)` or None.
        rows: the number of rows of the result; None: it is one vector.
        dtype: element type of the result; None: that of the values.

    Returns:
        `(d,)` or `(rows, d)`, with +0 for -0, so that the order of equal votes changes no bits.
    """
    votes = list(values)
    xp, working, width = namespace(votes[0]), working_dtype(votes), len(votes[0])
    shape = (width,) if rows is None else (rows, width)
    result = xp.empty(shape, votes[0], dtype or dtype_name(votes[0]))

    def work(columns: slice) -> None:
        block = [xp.cast(vote[columns], working) for vote in votes]
        before = None if previous is None else xp.cast(previous[columns], working)
        with np.errstate(over="ignore", invalid="ignore"):
            combined = combine(block, before)
            if rows is None:
                result[columns] = combined + 0.0
            else:
                for i, row in enumerate(combined):
                    result[i, columns] = row + 0.0

    for_blocks(work, width, xp.block, xp)
    return result


def mean(rows: Rows) -> Vector:
    """Average the rows, added up in their order: m times `(b,)` to `(b,)`."""
    return rows[0] if len(rows) == 1 else kernels(rows).mean(rows)


def weighted(weights: np.ndarray) -> Callable[..., list[Vector]]:
    """Return the function that combines n rows linearly to m, given `(m, n)` weights.

    It takes n rows `(b,)` and the previous result, `(b,)` or None, and returns m rows `(b,)`.
    What the weights of a row lack to one goes to the previous result, or to the origin.
    Every element is computed by itself, in the order of the rows: neither the width of the block
    nor the framework changes a bit. Rows of weight zero are not read.
    """
    recipes = [_recipe(row) for row in weights]

    def combine(rows: Rows, previous: Vector | None = None) -> list[Vector]:
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


def _sum(rows: Rows, votes: list[int], shares: list[float], previous: Vector | None) -> Vector:
    terms = [rows[i] for i in votes]
    if previous is None:
        shares = shares[:-1]
    if not shares:
        return rows[0] * 0.0
    return kernels(rows).weighted_sum(terms, shares, previous)


@np.errstate(over="ignore", invalid="ignore")
def finite_rows(values: Votes) -> np.ndarray:
    """Say which votes can be aggregated: `(n, d) -> (n,)` of bool.

    A vote cannot if an element is NaN or infinite, or so large, beyond 1e145 in float64, that
    squared distances would overflow.
    """
    xp = namespace(values)
    if isinstance(values, np.ndarray) and values.dtype in (np.float32, np.float64):
        # One fast pass; only a vote that is not short in this sense needs the second look.
        squares = for_blocks(lambda i: np.vdot(values[i], values[i]), len(values), 1, xp)
        short = np.array(squares) < LARGEST**2
        if short.all():
            return short
    working = working_dtype(values)
    largest = LARGEST if working == "float64" else np.inf
    finite: Any = True
    for columns in slices(values.shape[1], xp.block):
        least, greatest = xp.bounds(xp.cast(values[:, columns], working))
        finite = finite & (least > -largest) & (greatest < largest)
    return np.ones(len(values), bool) if finite is True else to_numpy(finite)

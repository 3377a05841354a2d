"""The Gram matrix of the votes and what can be read from it.

`gram_matrix(values, reference)` is `(n + 1, n + 1)`: scalar products of the n votes and, in the
last row, of a reference point, all seen from one centre in the midst of the votes. Every distance
between votes, and of a vote to the reference, follows from it. Matrices of parts of the columns
add up, even if each part has its own centre.
"""

from typing import Any

import numpy as np

from horovod_detox.aggregators.columns import slices
from horovod_detox.aggregators.sorting import sort
from horovod_detox.arrays import namespace, to_numpy

_SPREAD = 2.0**16
"""Squared ratio of the farthest vote to the majority beyond which their mean is a bad centre."""


@np.errstate(over="ignore", invalid="ignore")
def gram_matrix(values: Any, reference: Any = None) -> np.ndarray:
    """Return the float64 Gram matrix of finite votes: `(n, d)` and `(d,)` to `(n + 1, n + 1)`.

    Args:
        values: `(n, d)`.
        reference: `(d,)`; None: the origin.
    """
    xp, (n, width) = namespace(values), values.shape
    block = xp.block // 2
    buffer = xp.empty((n + 1, min(width, block)), values, "float64")
    gram = np.zeros((n + 1, n + 1))
    for columns in slices(width, block):
        points = buffer[:, : columns.stop - columns.start]
        part = values[:, columns], 0.0 if reference is None else reference[columns]
        partial = _gram_around(points, part, None)
        farthest = partial.diagonal()[:n].max()
        if farthest > _SPREAD * majority_radius(_differences(partial)[:n, :n]):
            partial = _gram_around(points, part, n // 2)
        gram += partial
    return (gram + gram.T) / 2


def _gram_around(points: Any, part: tuple[Any, Any], rank: int | None) -> np.ndarray:
    """Return the Gram matrix seen from the mean of the votes, or the value of this rank.

    The mean is cheap, but a single vote can drag it so far away that the distances between the
    others drown in rounding errors; the median stays among the majority.
    """
    points[:-1], points[-1] = part
    votes = points[:-1]
    points -= votes.mean(0) if rank is None else sort(votes, range(rank, rank + 1))[0]
    return to_numpy(points @ points.T)


def squared_distances(gram: np.ndarray) -> np.ndarray:
    """Return the squared distances between the votes: `(n + 1, n + 1) -> (n, n)`."""
    return _squared_distances(gram)[:-1, :-1]


def squared_norms(gram: np.ndarray) -> np.ndarray:
    """Return the squared distance of every vote to the reference: `(n + 1, n + 1) -> (n,)`."""
    return _squared_distances(gram)[:-1, -1]


def norms(gram: np.ndarray) -> np.ndarray:
    """Return the distance of every vote to the reference, not rounded, to divide by it."""
    return np.sqrt(np.maximum(_differences(gram)[:-1, -1], 0))


def _squared_distances(gram: np.ndarray) -> np.ndarray:
    """Return all squared distances, rounded to a multiple of 2^-40 of the lengths involved.

    What lies below is rounding error. Without it, distances that are equal tie, and their sums
    are exact, so that they do not depend on the order of the votes.
    """
    quantum = np.spacing(np.add.outer(gram.diagonal(), gram.diagonal())) * 2.0**12
    distances = np.round(_differences(gram) / quantum) * quantum
    np.fill_diagonal(distances, 0)
    return np.maximum(distances, 0)


def _differences(gram: np.ndarray) -> np.ndarray:
    """Return all squared distances as they come, with rounding errors."""
    return np.add.outer(gram.diagonal(), gram.diagonal()) - 2 * gram


def majority_radius(distances: np.ndarray) -> float:
    """Return the squared radius of the smallest ball around a vote with a strict majority in it."""
    return np.sort(distances, axis=1)[:, len(distances) // 2].min()


def compose(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the Gram matrix of weighted votes: `(n + 1, n + 1)`, `(m, n) -> (m + 1, m + 1)`."""
    rows = np.column_stack([weights, 1 - weights.sum(axis=1)])
    rows = np.vstack([rows, np.eye(1, len(gram), len(gram) - 1)])
    return rows @ gram @ rows.T


def averaging(votes: Any, n: int) -> np.ndarray:
    """Return the weights `(1, n)` that average the votes with these indices."""
    weights = np.zeros((1, n))
    weights[0, votes] = 1 / len(votes)
    return weights

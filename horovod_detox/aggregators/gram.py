"""The Gram matrix of the votes and what can be read from it.

`gram_matrix(values, reference)` is `(n + 1, n + 1)`: scalar products of the n votes and, in the
last row, of a reference point, all seen from one centre in the midst of the votes. Every distance
between votes, and of a vote to the reference, follows from it. Matrices of parts of the columns
add up, even if each part has its own centre.
"""

from typing import Any

import numpy as np

from horovod_detox.arrays.blocks import Rows, for_blocks, kernels, working_dtype
from horovod_detox.arrays.namespaces import Vector, namespace

_SPREAD = 2.0**16
"""Squared ratio of the farthest vote to the majority beyond which their mean is a bad centre."""


def gram_matrix(values: Rows, reference: Vector | None = None) -> np.ndarray:
    """Return the float64 Gram matrix of n finite votes: `(n + 1, n + 1)`.

    Args:
        values: n times `(d,)`.
        reference: `(d,)`; None: the origin.
    """
    votes = list(values)
    xp, working = namespace(votes[0]), working_dtype(votes)

    def work(columns: slice) -> np.ndarray:
        block = [xp.cast(vote[columns], working) for vote in votes]
        before = None if reference is None else xp.cast(reference[columns], working)
        with np.errstate(over="ignore", invalid="ignore"):
            return _block_gram(block, before)

    blocks = for_blocks(work, len(votes[0]), xp.block, xp)
    return sum(blocks, np.zeros((len(votes) + 1, len(votes) + 1)))


def _block_gram(rows: Rows, reference: Vector | None) -> np.ndarray:
    """Return the Gram matrix seen from the mean of the votes, or from their median.

    The mean is cheap, but a single vote can drag it so far away that the distances between the
    others drown in rounding errors; the median stays among the majority.
    """
    n, gram = len(rows), kernels(rows).gram
    seen = gram(rows, reference, None)
    if seen.diagonal()[:n].max() > _SPREAD * majority_radius(_differences(seen)[:n, :n]):
        middle = kernels(rows).trimmed_mean(rows, range(n // 2, n // 2 + 1))
        seen = gram(rows, reference, middle)
    return (seen + seen.T) / 2


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

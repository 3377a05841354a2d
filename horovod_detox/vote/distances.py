"""Distances between copies: what a vote with a tolerance compares in the place of fingerprints."""

from collections.abc import Sequence

import numpy as np

from horovod_detox.arrays.blocks import LARGEST, Rows, for_blocks, kernels, working_dtype
from horovod_detox.arrays.namespaces import Copy, namespace, view
from horovod_detox.packing.layout import Buffers
from horovod_detox.vote.groups import Groups


def distances_in_groups(groups: Groups, buffers: Buffers, copies: Sequence[Copy]) -> np.ndarray:
    """Return the squared distances between the copies of every group's members: `(k, m, m)`.

    Those of slices add up to those of the whole copies.

    Args:
        groups: k groups of at most m members; smaller ones are followed by zeros.
        buffers: what the words are.
        copies: of some words, by rank, p times `(w,)`.
    """
    size = max(map(len, groups.members))
    found = np.zeros((len(groups), size, size))
    for group, members in enumerate(groups.members):
        typed = [buffers.typed(view(copies[rank])) for rank in members]
        parts = [distances(rows) for rows in zip(*typed, strict=True)]
        found[group, : len(members), : len(members)] = sum(parts)
    return found


def distances(values: Rows) -> np.ndarray:
    """Return the squared distances between r rows; on the diagonal their squared lengths.

    They come from differences, in float64, so that rows that are nearly equal are told apart. The
    length of a row that holds NaN or infinity, or numbers too large to be squared, is infinite.

    Args:
        values: r times `(d,)`.

    Returns:
        `(r, r)` of float64.

    >>> distances(np.array([[3.0, 4.0], [3.0, 4.5], [np.inf, 0.0]])).tolist()
    [[25.0, 0.25, inf], [0.25, 29.25, inf], [inf, inf, inf]]
    """
    rows = list(values)
    xp, working = namespace(rows[0]), working_dtype(rows)

    def work(columns: slice) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return _block_distances([xp.cast(row[columns], working) for row in rows])

    blocks = for_blocks(work, len(rows[0]), xp.block, xp)
    with np.errstate(over="ignore", invalid="ignore"):
        found = sum(blocks, np.zeros((len(rows), len(rows))))
    lengths = found.diagonal()
    np.fill_diagonal(found, np.where(lengths < LARGEST**2, lengths, np.inf))
    return found


def _block_distances(rows: Rows) -> np.ndarray:
    """Return what `distances` does, of a block: of the Gram matrix seen from each row in turn."""
    gram = kernels(rows).gram
    found = np.empty((len(rows), len(rows)))
    for i, row in enumerate(rows):
        seen = gram(rows[: i + 1], None, row).diagonal()
        found[i, :i] = found[:i, i] = seen[:i]
        found[i, i] = seen[-1]  # of the origin
    return found

"""What several ranks computed from the same votes: which result counts, and who erred."""

from collections.abc import Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Words
from horovod_detox.exchange.step import NoMajority, Step


def majority(by_rank: np.ndarray, holders: np.ndarray) -> tuple[np.ndarray, set[int]]:
    """Return what most holders of each slice computed, and the ranks that computed otherwise.

    Args:
        by_rank: `(p, 1 + w, n)` words: what each rank computed for the slices that it holds.
        holders: `(1 + w, p)`: who holds each slice.

    Returns:
        `(p, n)` words by slice, and ranks.

    Raises:
        NoMajority: when there is a slice of which no result is that of most.
    """
    by_slice = by_rank[holders, np.arange(len(holders))[:, None]]  # (1 + w, p, n)
    equal = (by_slice[:, None] == by_slice[None]).all(axis=-1)  # (1 + w, 1 + w, p)
    supporters = equal.sum(axis=1)
    winner = supporters.argmax(axis=0)
    undecided = np.flatnonzero(2 * supporters.max(axis=0) <= len(holders))
    if len(undecided):
        ranks = sorted(holders[:, undecided[0]].tolist())
        raise NoMajority(
            f"no update in this step: ranks {ranks} computed different results from the same "
            "votes, and no result is that of most: one of them computes wrongly, or rounds "
            "differently. Raise Detox(witnesses=) to see which"
        )
    slices = np.arange(holders.shape[1])
    agree = equal[winner, :, slices].T  # (1 + w, p)
    return by_slice[winner, slices], set(holders[~agree].tolist())


def confirm(
    step: Step,
    bounds: Sequence[tuple[int, int]],
    results: Sequence[Words],
    digests: np.ndarray,
    holders: np.ndarray,
) -> set[int]:
    """Mend the slices that are not as most holders computed them; return who computed otherwise.

    Args:
        step: its update is as the owners sent it; mended in place, on every rank alike.
        bounds: of the slices.
        results: what this rank computed for the slices that it holds, its own first.
        digests: `(p, 1 + w, WORDS)`: the fingerprints of everybody's results.
        holders: `(1 + w, p)`: who holds each slice, its owner first.
    """
    collectives, update = step.collectives, step.update
    true, wrong = majority(digests, holders)
    for s in np.flatnonzero((step.fingerprints.of(update, bounds) != true).any(axis=1)).tolist():
        wrong.add(s)  # also the owner that fingerprinted another slice than it sent
        j, witness = next(
            (j, rank)
            for j, rank in enumerate(holders[:, s].tolist())
            if j and (digests[rank, j] == true[s]).all()
        )
        start, stop = bounds[s]
        if collectives.rank == witness:
            update[start:stop] = results[j]
        collectives.broadcast(f"mended.{s}.{j}", update[start:stop], witness).wait()
    return wrong

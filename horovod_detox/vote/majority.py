"""The majority vote of a group: fingerprints or distances in, winners and dissenters out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from horovod_detox.vote.groups import Groups


@dataclass(frozen=True)
class Vote:
    """The outcome of one group's vote.

    Attributes:
        winners: `(slices,)` a rank whose copy of the slice holds the majority, or `(1,)` a rank
            whose whole copy is taken; None: abstention, the group has no strict majority in some
            slice and is left out of the aggregation.
        dissenters: ranks whose copy lost in some slice. Nobody is blamed in an abstention.
        has_joined: whether most members have joined, which is no fault; others are dissenters.
    """

    winners: tuple[int, ...] | None
    dissenters: tuple[int, ...] = ()
    has_joined: bool = field(default=False, repr=False)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one step: the vote of every group, the same on every rank."""

    votes: tuple[Vote, ...]

    @property
    def winners(self) -> dict[int, tuple[int, ...]]:
        """Return the winners of each group that has a vote, groups ascending."""
        return {g: vote.winners for g, vote in enumerate(self.votes) if vote.winners is not None}

    @property
    def abstentions(self) -> tuple[int, ...]:
        """Return the groups without a strict majority."""
        return tuple(
            g for g, vote in enumerate(self.votes) if vote.winners is None and not vote.has_joined
        )

    @property
    def joined(self) -> tuple[int, ...]:
        """Return the groups most of whose members have joined."""
        return tuple(g for g, vote in enumerate(self.votes) if vote.has_joined)

    @property
    def dissenters(self) -> tuple[int, ...]:
        """Return the ranks whose copy lost, ascending."""
        return tuple(sorted(rank for vote in self.votes for rank in vote.dissenters))


def majority_vote(ranks: Sequence[int], fingerprints: np.ndarray) -> Vote:
    """Take the vote of one group slice by slice.

    A slice is won by the copy that more than half of the members hold; of those members the
    lowest rank is named. Without such a copy in every slice the whole group abstains.

    Args:
        ranks: the r members of the group, ascending.
        fingerprints: `(r, slices, n)` of int64, row i of `ranks[i]`.

    >>> row = np.zeros((1, 2, 2), np.int64)
    >>> majority_vote((4, 5, 6), np.concatenate([row, row + 1, row]))
    Vote(winners=(4, 4), dissenters=(5,))
    >>> majority_vote((4, 5, 6), np.concatenate([row, row + 1, row + 2]))
    Vote(winners=None, dissenters=())
    """
    return _votes(np.array([ranks]), fingerprints[None])[0]


def judge(groups: Groups, fingerprints: np.ndarray) -> Verdict:
    """Take the vote of every group from the table of all ranks' fingerprints.

    Args:
        groups: k groups of p ranks.
        fingerprints: `(p, slices, n)` of int64, row i of rank i; labels of equal slices, too.
    """
    votes: dict[int, Vote] = {}
    for size in {len(ranks) for ranks in groups.members}:
        chosen = [group for group, ranks in enumerate(groups.members) if len(ranks) == size]
        ranks = np.array([groups.members[group] for group in chosen])
        votes |= zip(chosen, _votes(ranks, fingerprints[ranks]), strict=True)
    return Verdict(tuple(votes[group] for group in range(len(groups))))


def _votes(ranks: np.ndarray, fingerprints: np.ndarray) -> list[Vote]:
    """Take the votes of g groups of r: `(g, r)` ranks and `(g, r, slices, n)` fingerprints."""
    if (fingerprints == fingerprints[:, :1]).all():
        return [Vote((first,) * fingerprints.shape[2]) for first in ranks[:, 0].tolist()]
    equal = (fingerprints[:, :, None] == fingerprints[:, None]).all(axis=-1)  # (g, r, r, slices)
    supporters = equal.sum(axis=2)  # (g, r, slices)
    winner = supporters.argmax(axis=1)  # (g, slices), the lowest index among equals
    has_majority = 2 * supporters.max(axis=1).min(axis=-1) > ranks.shape[1]  # (g,)
    with_winner = np.take_along_axis(equal, winner[:, None, None], axis=1)[:, 0]  # (g, r, slices)
    lost = np.logical_not(with_winner.all(axis=-1))  # (g, r)
    winners = np.take_along_axis(ranks, winner, axis=1)
    return [
        Vote(tuple(winners[g].tolist()), tuple(ranks[g][lost[g]].tolist()))
        if has_majority[g]
        else Vote(winners=None)
        for g in range(len(ranks))
    ]


def tolerant_vote(ranks: Sequence[int], distances: np.ndarray, tolerance: float) -> Vote:
    """Take the vote of one group on whole copies that honest members compute with noise.

    Two copies are close when their distance is at most `tolerance` times the larger of their
    lengths; two copies that are not finite are close, too, as members that overflow need not do
    so in the same elements. A copy stands when more than half of the members, itself included,
    are close to it. Of the copies that stand the one wins whose ball around it that holds more than
    half of the members is the smallest, so that a copy far from the others does not win though it
    stands; of equals that of the lowest rank. The members whose copies do not stand dissent.

    Args:
        ranks: the r members of the group, ascending.
        distances: `(r, r)` squared distances between their copies; on the diagonal the squared
            lengths, infinite for copies that are not finite.
        tolerance: less than 1.

    >>> apart = np.array([[100.0, 0.25, 900.0], [0.25, 100.0, 900.0], [900.0, 900.0, 400.0]])
    >>> tolerant_vote((4, 5, 6), apart, 0.1)
    Vote(winners=(4,), dissenters=(6,))
    >>> tolerant_vote((4, 5, 6), apart, 0.01)
    Vote(winners=None, dissenters=())
    """
    finite = np.isfinite(distances.diagonal())
    squares = np.where(finite, distances.diagonal(), 0)
    apart = np.where(finite & finite[:, None], distances, np.inf)
    apart[~finite & ~finite[:, None]] = 0
    np.fill_diagonal(apart, 0)
    close = apart <= tolerance**2 * np.maximum.outer(squares, squares)
    stands = 2 * close.sum(axis=1) > len(ranks)
    if not stands.any():
        return Vote(winners=None)
    radius = np.sort(apart, axis=1)[:, len(ranks) // 2]
    winner = int(np.where(stands, radius, np.inf).argmin())
    dissenters = np.flatnonzero(~stands).tolist()
    return Vote((ranks[winner],), tuple(ranks[i] for i in dissenters))


def judge_distances(groups: Groups, distances: np.ndarray, tolerance: float) -> Verdict:
    """Take the vote of every group on whole copies: see `tolerant_vote`.

    Args:
        groups: k groups of at most m ranks.
        distances: `(k, m, m)`, those of each group's members first.
        tolerance: less than 1.
    """
    return Verdict(
        tuple(
            tolerant_vote(ranks, distances[group, : len(ranks), : len(ranks)], tolerance)
            for group, ranks in enumerate(groups.members)
        )
    )


def merge(verdicts: Sequence[Verdict]) -> Verdict:
    """Join the verdicts on parts of the copies: a group that abstains in one abstains in all.

    >>> merge([Verdict((Vote((0, 1), (2,)), Vote((3,)))), Verdict((Vote((0,)), Vote(None)))])
    Verdict(votes=(Vote(winners=(0, 1, 0), dissenters=(2,)), Vote(winners=None, dissenters=())))
    """
    votes = []
    for parts in zip(*(verdict.votes for verdict in verdicts), strict=True):
        if any(part.winners is None for part in parts):
            votes.append(Vote(winners=None))
        else:
            winners = tuple(rank for part in parts for rank in part.winners or ())
            dissenters = sorted({rank for part in parts for rank in part.dissenters})
            votes.append(Vote(winners, tuple(dissenters)))
    return Verdict(tuple(votes))

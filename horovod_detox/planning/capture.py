"""How many groups faulty ranks can capture: counted over every placement, not drawn."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import comb

import numpy as np

from horovod_detox.config import Detox
from horovod_detox.vote.groups import Groups

Lost = tuple[int, int]
"""How many groups are captured, and how many abstain because faulty ranks are half of them."""
Ways = np.ndarray
"""`(q + 1,)`: in how many ways 0, 1, ..., q faulty ranks can be put into some groups."""


def lost_to(faulty: Collection[int], groups: Groups) -> Lost:
    """Count the groups that colluding ranks capture, and those in which they force a tie.

    >>> lost_to({0, 1, 4, 5}, Groups(((0, 1, 2), (3, 4, 5, 6), (7, 8))))
    (1, 1)
    """
    outcomes = [_outcome(len({*members} & {*faulty}), len(members)) for members in groups.members]
    return outcomes.count("captured"), outcomes.count("tied")


def worst_host(hosts: Sequence[str], groups: Groups) -> tuple[str, Lost]:
    """Return the host that costs most when all its ranks lie, the first of equals, and what.

    Args:
        hosts: the host of each rank.

    >>> worst_host("aaabbb", Groups(((0, 2, 4), (1, 3, 5))))
    ('a', (1, 0))
    """
    lost = {
        host: lost_to([rank for rank, name in enumerate(hosts) if name == host], groups)
        for host in dict.fromkeys(hosts)
    }
    return max(lost.items(), key=lambda item: item[1])


def stands(detox: Detox, groups: Groups, lost: Lost) -> bool:
    """Return whether the rules tolerate the captured votes, when groups that tie have none.

    >>> groups = Groups(((0, 1, 2), (3, 4, 5), (6, 7, 8)))
    >>> [stands(Detox(outer="median"), groups, (captured, 0)) for captured in range(3)]
    [True, True, False]
    """
    captured, ties = lost
    votes = len(groups) - ties
    try:
        detox.fit(groups)
        return captured <= detox.hierarchy().prepared(votes).max_f(votes)
    except ValueError:  # TooFewVotes is one
        return False


def lost_at_random(sizes: Sequence[int], faulty: int) -> dict[Lost, Fraction]:
    """Return the exact probability of each outcome when any q of the ranks are equally likely.

    Outcomes that no placement has are left out. So the largest number of captured groups is that
    of the worst case.

    >>> {lost: str(share) for lost, share in lost_at_random([3] * 5, 2).items()}
    {(0, 0): '6/7', (1, 0): '1/7'}
    """
    ways: dict[Lost, Ways] = {(0, 0): _ways({0: 1}, faulty)}
    for size, groups in Counter(sizes).items():
        further = [*_ways_to_lose(groups, size, faulty)]
        joined: dict[Lost, Ways] = {}
        for ((c, t), before), ((captured, tied), more) in product(ways.items(), further):
            lost = c + captured, t + tied
            joined[lost] = joined.get(lost, 0) + _combined(before, more)
        ways = joined
    every = comb(sum(sizes), faulty)
    return {lost: Fraction(ways[lost][-1], every) for lost in sorted(ways) if ways[lost][-1]}


def _ways_to_lose(groups: int, size: int, faulty: int) -> Iterator[tuple[Lost, Ways]]:
    """Yield how many groups of one size may be captured and tied, and the ways to do so."""
    of_one: dict[str, dict[int, int]] = {"kept": {}, "tied": {}, "captured": {}}
    for j in range(size + 1):
        of_one[_outcome(j, size)][j] = comb(size, j)
    most_captured = min(groups, faulty // (size // 2 + 1))
    most_tied = min(groups, faulty // (size // 2)) if of_one["tied"] else 0
    capture = _powers(_ways(of_one["captured"], faulty), most_captured)
    tie = _powers(_ways(of_one["tied"], faulty), most_tied)
    keep = _powers(_ways(of_one["kept"], faulty), groups)
    for captured, tied in product(range(most_captured + 1), range(most_tied + 1)):
        kept = groups - captured - tied
        if kept >= 0:
            choices = comb(groups, captured) * comb(groups - captured, tied)
            lose = _combined(capture[captured], tie[tied])
            yield (captured, tied), choices * _combined(lose, keep[kept])


def _ways(counts: Mapping[int, int], faulty: int) -> Ways:
    """Return the ways to put j faulty ranks, for every j up to q: of Python's exact integers."""
    return np.array([counts.get(j, 0) for j in range(faulty + 1)], object)


def _combined(some: Ways, others: Ways) -> Ways:
    """Return the ways to put faulty ranks into some groups and others: a product of polynomials."""
    return np.convolve(some, others)[: len(some)]


def _powers(of_one: Ways, most: int) -> list[Ways]:
    """Return the ways for no group, for one, and so on."""
    powers = [_ways({0: 1}, len(of_one) - 1)]
    for _ in range(most):
        powers.append(_combined(powers[-1], of_one))
    return powers


def _outcome(faulty: int, size: int) -> str:
    if 2 * faulty == size:
        return "tied"
    return "captured" if 2 * faulty > size else "kept"

"""How many groups faulty ranks can capture: counted over every placement, not drawn."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from itertools import product
from math import comb

from horovod_detox.groups import Groups

Lost = tuple[int, int]
"""How many groups are captured, and how many abstain because faulty ranks are half of them."""


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


def lost_at_random(sizes: Sequence[int], faulty: int) -> dict[Lost, Fraction]:
    """Return the exact probability of each outcome when any q of the ranks are equally likely.

    Outcomes that no placement has are left out. So the largest number of captured groups is that
    of the worst case.

    >>> {lost: str(share) for lost, share in lost_at_random([3] * 5, 2).items()}
    {(0, 0): '6/7', (1, 0): '1/7'}
    """
    # The coefficient of x ** j in a polynomial counts the ways to put j faulty ranks into some
    # groups. A polynomial is one integer, its coefficients up to j = q are the lowest digits:
    # wide enough, for the others overflow only upwards.
    p = sum(sizes)
    digit = comb(p, min(faulty, p // 2)).bit_length()
    first_digits = (1 << digit * (faulty + 1)) - 1
    ways: dict[Lost, int] = {(0, 0): 1}
    for size, groups in Counter(sizes).items():
        joined: Counter[Lost] = Counter()
        for (c, t), polynomial in ways.items():
            for captured, ties, factor in _ways_to_lose(groups, size, faulty, digit):
                joined[c + captured, t + ties] += polynomial * factor & first_digits
        ways = joined
    counts = {lost: polynomial >> digit * faulty for lost, polynomial in ways.items()}
    every = comb(p, faulty)
    return {lost: Fraction(counts[lost], every) for lost in sorted(counts) if counts[lost]}


def _ways_to_lose(
    groups: int, size: int, faulty: int, digit: int
) -> Iterator[tuple[int, int, int]]:
    """Yield how many groups of one size are captured and tied, and the polynomial of the ways."""
    ways: Counter[str] = Counter()
    for j in range(size + 1):
        ways[_outcome(j, size)] += comb(size, j) << digit * j
    most_captured = min(groups, faulty // (size // 2 + 1))
    most_tied = min(groups, faulty // (size // 2)) if ways["tied"] else 0
    for captured, tied in product(range(most_captured + 1), range(most_tied + 1)):
        kept = groups - captured - tied
        if kept >= 0:
            choices = comb(groups, captured) * comb(groups - captured, tied)
            polynomial = ways["captured"] ** captured * ways["tied"] ** tied * ways["kept"] ** kept
            yield captured, tied, choices * polynomial


def _outcome(faulty: int, size: int) -> str:
    if 2 * faulty == size:
        return "tied"
    return "captured" if 2 * faulty > size else "kept"

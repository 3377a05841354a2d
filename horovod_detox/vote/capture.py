"""How many votes faulty ranks can capture, and how many groups they can leave without one."""

import sys
from collections.abc import Collection, Iterator
from itertools import accumulate, product

from horovod_detox.vote.groups import Groups


def faulty_votes(
    num_byzantine: int,
    groups: Groups,
    silenced: Collection[int] = (),
    joined: Collection[int] = (),
) -> int:
    """Return f, the most votes that q faulty ranks can capture.

    Args:
        num_byzantine: q.
        groups: of all ranks.
        silenced: the groups without a vote, to which at least half of their ranks contributed; if
            these are more than q, nothing follows from it.
        joined: groups that have no vote for another reason.

    >>> groups = Groups(((0, 1), (2, 3), (4, 5), (6, 7, 8)))
    >>> faulty_votes(5, groups), faulty_votes(5, groups, [0]), faulty_votes(5, groups, [0, 1, 2])
    (2, 2, 1)
    """
    without = {*silenced, *joined}
    sizes = [len(ranks) for group, ranks in enumerate(groups.members) if group not in without]
    left = num_byzantine - sum(ranks_to_silence(len(groups.members[g])) for g in silenced)
    costs = accumulate(size // 2 + 1 for size in sorted(sizes))
    return sum(cost <= (left if left >= 0 else num_byzantine) for cost in costs)


def ranks_to_silence(size: int) -> int:
    """Return how many faulty ranks leave a group of this size without a majority.

    Half of an even group tie it; more than half of an odd one do, if their copies differ. The copy
    of a single rank is always the majority.
    """
    return -(-size // 2) if size > 1 else sys.maxsize


def silenced_groups(num_byzantine: int, groups: Groups) -> Iterator[list[int]]:
    """Yield the groups that q faulty ranks can silence together; of groups of one size the first.

    >>> list(silenced_groups(2, Groups(((0, 1), (2, 3), (4, 5, 6)))))
    [[2], [0], [0, 1]]
    """
    by_size: dict[int, list[int]] = {}
    for group, ranks in enumerate(groups.members):
        by_size.setdefault(len(ranks), []).append(group)
    for counts in product(*(range(len(alike) + 1) for alike in by_size.values())):
        cost = sum(ranks_to_silence(size) * n for size, n in zip(by_size, counts, strict=True))
        if 0 < cost <= num_byzantine:
            alike = zip(by_size.values(), counts, strict=True)
            yield [group for same, n in alike for group in same[:n]]

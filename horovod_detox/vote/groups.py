"""Which rank is in which redundancy group."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PLACEMENTS = ("spread", "packed", "random")


@dataclass(frozen=True)
class Groups:
    """The redundancy groups of a job: `members[g]` are the ranks of group g, ascending."""

    members: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def world_size(self) -> int:
        """Return p, the number of ranks."""
        return sum(map(len, self.members))

    @property
    def smallest(self) -> int:
        """Return the redundancy of the smallest group: the one that the guarantees rest on."""
        return min(map(len, self.members))

    @property
    def leaders(self) -> tuple[int, ...]:
        """Return the lowest rank of every group."""
        return tuple(ranks[0] for ranks in self.members)

    @cached_property
    def _group_of(self) -> dict[int, int]:
        return {rank: group for group, ranks in enumerate(self.members) for rank in ranks}

    def of(self, rank: int) -> int:
        """Return the group of a rank."""
        return self._group_of[rank]

    def with_most_of(self, ranks: Collection[int]) -> int:
        """Return how many groups there are of whose ranks most are among these.

        >>> Groups(((0, 1), (2, 3, 4))).with_most_of({0, 3, 4})
        1
        """
        chosen = set(ranks)
        return sum(2 * len(chosen.intersection(group)) > len(group) for group in self.members)

    def are_mostly_of(self, ranks: Collection[int]) -> bool:
        """Return whether most groups are with some ranks: those most of whose members are.

        >>> groups = Groups(((0, 1, 2), (3, 4, 5), (6, 7, 8)))
        >>> groups.are_mostly_of([0, 1, 3, 4]), groups.are_mostly_of([0, 1, 2, 3, 6])
        (True, False)
        """
        return 2 * self.with_most_of(ranks) > len(self)


def most_witnesses(groups: Groups) -> int:
    """Return how many witnesses each owner can have, no two of them or it in one group.

    >>> most_witnesses(Groups(((0, 2, 4), (1, 3, 5))))
    1
    """
    return groups.world_size // max(map(len, groups.members)) - 1


def slice_holders(groups: Groups, witnesses: int) -> np.ndarray:
    """Return who computes each slice: its owner and then its witnesses, `(1 + witnesses, p)`.

    Slice s is owned by rank s. Every rank witnesses as many slices as each other, and an owner and
    its witnesses are of different groups.

    >>> slice_holders(Groups(((0, 1), (2, 3), (4, 5))), 2)
    array([[0, 1, 2, 3, 4, 5],
           [2, 3, 4, 5, 0, 1],
           [4, 5, 0, 1, 2, 3]])
    """
    order = np.array([rank for ranks in groups.members for rank in ranks])
    holders = np.empty((1 + witnesses, len(order)), dtype=np.int64)
    for j in range(1 + witnesses):
        holders[j, order] = np.roll(order, -j * max(map(len, groups.members)))
    return holders


def form_groups(
    world_size: int,
    group_size: int,
    placement: str = "spread",
    hosts: Sequence[object] | None = None,
    seed: int = 0,
) -> Groups:
    """Divide p ranks into `p // group_size` groups whose sizes differ by one at most.

    Args:
        world_size: p, the number of ranks.
        group_size: r, the redundancy asked for; the remainder of `p / r` is spread over the groups.
        placement: `spread` puts the members of a group on different hosts, `packed` on the same
            host, `random` deals ranks by `seed`, as the analysis of the DETOX paper assumes.
        hosts: the host of each rank (any hashable value); None: one host.
        seed: seeds the placement `random`.

    Raises:
        ValueError: when p ranks cannot form one group of `group_size`.

    >>> form_groups(7, 3).members
    ((0, 2, 4, 6), (1, 3, 5))
    >>> form_groups(6, 3, "packed").members
    ((0, 1, 2), (3, 4, 5))
    >>> form_groups(6, 3, hosts=["a", "a", "b", "b", "c", "c"]).members
    ((0, 2, 4), (1, 3, 5))
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement {placement!r} is not one of {', '.join(PLACEMENTS)}")
    if world_size < group_size:
        raise ValueError(
            f"{world_size} ranks cannot form a group of {group_size}: "
            f"choose group_size from 1 to {world_size} (3 or more to outvote a faulty rank) "
            f"or start at least {group_size} ranks"
        )
    k = world_size // group_size
    order = _by_host(world_size, hosts)
    if placement == "spread":
        members = [order[group::k] for group in range(k)]
    else:
        if placement == "random":
            order = np.random.default_rng(seed).permutation(world_size).tolist()
        members = [part.tolist() for part in np.array_split(np.array(order), k)]
    return Groups(tuple(tuple(sorted(ranks)) for ranks in members))


def _by_host(world_size: int, hosts: Sequence[object] | None) -> list[int]:
    """Order the ranks host by host, hosts by their lowest rank."""
    if hosts is None:
        return list(range(world_size))
    if len(hosts) != world_size:
        raise ValueError(f"{len(hosts)} hosts were given for {world_size} ranks")
    first_rank: dict[object, int] = {}
    for rank, host in enumerate(hosts):
        first_rank.setdefault(host, rank)
    return sorted(range(world_size), key=lambda rank: (first_rank[hosts[rank]], rank))


def group_seeds(seed: int, group: int) -> tuple[int, int, int]:
    """Return the seeds of Python, NumPy and the framework for the ranks of a group.

    >>> group_seeds(0, 1) == group_seeds(0, 2)
    False
    """
    python, numpy, framework = np.random.SeedSequence([seed, group]).generate_state(3).tolist()
    return python, numpy, framework

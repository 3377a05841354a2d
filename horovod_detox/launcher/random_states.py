"""Random states: alike inside a group."""

import hashlib
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from horovod_detox.exchange.collectives import Collectives
from horovod_detox.vote.groups import Groups, group_seeds


@dataclass(frozen=True)
class RandomState:
    """One of a process's random states.

    Attributes:
        name: as users know it.
        read: returns what determines the numbers to come; of an unseeded one, anything.
        seed: starts it anew.
    """

    name: str
    read: Callable[[], object]
    seed: Callable[[int], object]

    def digest(self) -> int:
        """Return 63 bits that differ between states."""
        return int.from_bytes(hashlib.sha256(pickle.dumps(self.read())).digest()[:8]) >> 1


PYTHON = RandomState("python", random.getstate, random.seed)
NUMPY = RandomState("NumPy", np.random.get_state, np.random.seed)


def align(
    states: Sequence[RandomState],
    collectives: Collectives,
    groups: Groups,
    seed: int | None = None,
) -> list[str]:
    """Seed anew, in every group, the states that are not the same on all of its members.

    All ranks call this. Members that agree keep their states.

    Args:
        states: of python, NumPy and the framework.
        collectives: of the ranks of the groups.
        groups: their groups.
        seed: of the new states, which differ across groups, as for `seed_group`; None: one that
            follows from the state of the group's lowest rank.

    Returns:
        The names of the states that were seeded in some group, the same on every rank.
    """
    mine = np.array([state.digest() for state in states], dtype=np.int64)
    everyones = collectives.allgather("states", mine).wait().reshape(collectives.size, len(states))
    own_group = groups.of(collectives.rank)
    seeded = []
    for i, state in enumerate(states):
        differing = [
            (group, int(everyones[members[0], i]))
            for group, members in enumerate(groups.members)
            if len(np.unique(everyones[list(members), i])) > 1
        ]
        if differing:
            seeded.append(state.name)
        for group, lowest in differing:
            if group == own_group:
                state.seed(group_seeds(lowest if seed is None else seed, group)[i])
    return seeded

"""The vote of a group that lost its majority because its members held wrong states.

What a rank computes from a wrong state is a wrong copy, though the rank is sound. When it is known
who held what most ranks hold, these members speak for their group: the others take over their copy,
and the exchange is done again.
"""

from collections.abc import Collection

import numpy as np

from horovod_detox.arrays.namespaces import Words, like, namespace
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.groups import Groups


def speakers(
    groups: Groups, silent: Collection[int], odd: Collection[int]
) -> dict[int, tuple[int, ...]]:
    """Return the members that held what most hold, of groups in which others did not.

    Args:
        groups: of the ranks.
        silent: the groups without a majority.
        odd: the ranks that held something else than most.

    >>> speakers(Groups(((0, 1, 2), (3, 4, 5))), silent=[0, 1], odd=[0, 2])
    {0: (1,)}
    """
    found = {}
    for group in silent:
        members = groups.members[group]
        sound = tuple(rank for rank in members if rank not in odd)
        if 0 < len(sound) < len(members):
            found[group] = sound
    return found


def taken_over(
    collectives: Collectives,
    groups: Groups,
    copy: Words,
    sound: dict[int, tuple[int, ...]],
    fingerprints: Fingerprints,
) -> Words | None:
    """Return the copy that this rank brings to the exchange when it is done again.

    All ranks come here together. Whoever takes over a copy digests what it receives.

    Args:
        collectives: of the ranks.
        groups: of them.
        copy: `(w,)` words of this rank; left as they are.
        sound: by group, who speaks for it.
        fingerprints: of this step.

    Returns:
        `(w,)` words; None, on all ranks: those who speak for a group do not agree, in any of them.
    """
    mine = fingerprints.of(copy, [(0, len(copy))])[0]
    told = collectives.allgather("replicas.copies", mine).wait().reshape(collectives.size, -1)
    agreeing = {
        group: ranks for group, ranks in sound.items() if (told[[*ranks]] == told[ranks[0]]).all()
    }
    if not agreeing:
        return None
    result = copy
    for group, (speaker, *_) in agreeing.items():
        words = like(copy, namespace(copy).copy(copy))
        collectives.broadcast(f"replicas.copy.{group}", words, speaker).wait()
        takes = groups.of(collectives.rank) == group and collectives.rank not in sound[group]
        if takes and np.array_equal(fingerprints.of(words, [(0, len(words))])[0], told[speaker]):
            result = words
    return result

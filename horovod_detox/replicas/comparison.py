"""Who holds something else than most: pure functions of digests, as `vote.majority` is."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from horovod_detox.vote.groups import Groups


@dataclass(frozen=True)
class Difference:
    """A piece that ranks hold differently.

    Attributes:
        key: of the piece.
        odd: the ranks that do not hold what most do, ascending; if there is no majority, all.
        donors: the ranks that hold it, ascending; none: there is no majority.
        team: the ranks that were compared.
    """

    key: str
    odd: tuple[int, ...]
    donors: tuple[int, ...]
    team: tuple[int, ...]


def difference(key: str, digests: np.ndarray, team: Sequence[int]) -> Difference | None:
    """Compare what some ranks hold of a piece; None: the same.

    Args:
        key: of the piece.
        digests: `(p, n)`, by rank.
        team: the ranks.

    >>> digests = np.array([[7], [7], [5], [7]])
    >>> difference("buffers/mean", digests, [0, 1, 2])
    Difference(key='buffers/mean', odd=(2,), donors=(0, 1), team=(0, 1, 2))
    >>> difference("buffers/mean", digests, [0, 2]).donors
    ()
    >>> difference("buffers/mean", digests, [0, 1, 3])
    """
    _, labels, counts = np.unique(
        digests[list(team)], axis=0, return_inverse=True, return_counts=True
    )
    if len(counts) == 1:
        return None
    most, labels = int(counts.argmax()), labels.ravel().tolist()
    if 2 * counts[most] <= len(team):
        return Difference(key, tuple(team), (), tuple(team))
    odd = tuple(rank for rank, label in zip(team, labels, strict=True) if label != most)
    donors = tuple(rank for rank, label in zip(team, labels, strict=True) if label == most)
    return Difference(key, odd, donors, tuple(team))


@dataclass
class Guard:
    """Which pieces of each group are guarded: those that were once the same on all its ranks.

    What is of all ranks always is. What a group holds differently and nobody can decide is guarded
    no more, as it may be meant to differ.
    """

    groups: Groups
    _of_group: dict[int, set[str]] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)

    def knows(self, keys: Sequence[str]) -> bool:
        """Return whether all these pieces of groups were compared at some time."""
        return self._known.issuperset(keys)

    def guards(self, key: str, group: int) -> bool:
        """Return whether a piece of a group is guarded."""
        return key in self._of_group.get(group, ())

    def compare(
        self, of_all: Mapping[str, np.ndarray], of_groups: Mapping[str, np.ndarray]
    ) -> list[Difference]:
        """Return who holds something else of what is guarded; guard what is the same from now on.

        Args:
            of_all: `(p, n)` digests by rank of what all ranks hold, by key.
            of_groups: likewise, of what groups do.
        """
        everybody = range(self.groups.world_size)
        found = [difference(key, digests, everybody) for key, digests in of_all.items()]
        differences = [each for each in found if each is not None]
        spoilt = {rank for each in differences if each.donors for rank in each.odd}
        for key, digests in of_groups.items():
            differences += self._compare(key, digests, spoilt)
        self._known.update(of_groups)
        return differences

    def _compare(
        self, key: str, digests: np.ndarray, spoilt: Collection[int]
    ) -> Iterator[Difference]:
        """Compare a piece inside of groups.

        Members with wrong weights have computed with them, as the statistics of a batch: if the
        others hold the same, these decide.
        """
        for group, members in enumerate(self.groups.members):
            if len(members) < 2:
                continue
            found = difference(key, digests, members)
            guarded = self._of_group.setdefault(group, set())
            if found is None:
                guarded.add(key)
            elif key in guarded:
                sound = tuple(rank for rank in members if rank not in spoilt)
                if sound and difference(key, digests, sound) is None:
                    other = (digests != digests[sound[0]]).any(axis=1)
                    odd = tuple(rank for rank in members if other[rank])
                    found = Difference(key, odd, sound, members)
                if not found.donors:
                    guarded.discard(key)
                yield found

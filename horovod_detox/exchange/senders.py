"""Who sends each slice of a group's vote to its owner."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from horovod_detox.exchange.evidence import Silenced
from horovod_detox.vote.groups import Groups


def choose_senders(groups: Groups, slices: int, distrusted: Collection[int]) -> np.ndarray:
    """Choose who sends each slice: its owner if it can, else members in turn; `(k, slices)`."""
    senders = np.empty((len(groups), slices), dtype=np.int64)
    for group, members in enumerate(groups.members):
        trusted = np.array([rank for rank in members if rank not in distrusted] or members)
        others = np.delete(np.arange(slices), trusted)
        senders[group, trusted] = trusted
        senders[group, others] = np.resize(trusted, len(others))
    return senders


def repairs(
    groups: Groups,
    winners_by_group: Mapping[int, Sequence[int]],
    table: np.ndarray,
    senders: np.ndarray,
    guilty: Collection[int],
) -> dict[tuple[int, int], int]:
    """Return other senders, by (group, slice), where the present one lost or is guilty.

    Raises:
        Silenced: when nobody is left to send a slice of a group.
    """
    found = {}
    slices = np.arange(table.shape[1])
    for group, winners in winners_by_group.items():
        won = table[list(winners), slices]  # (slices, 3)
        fits = (table[senders[group], slices] == won).all(axis=1)
        if guilty:
            fits &= ~np.isin(senders[group], list(guilty))
        for s in np.flatnonzero(~fits).tolist():
            others = [
                rank
                for rank in groups.members[group]
                if rank not in guilty and (table[rank, s] == won[s]).all()
            ]
            if not others:
                raise Silenced(group)
            found[group, s] = others[0]
    return found

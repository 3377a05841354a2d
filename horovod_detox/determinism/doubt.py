"""Whether ranks that differ are to be called faulty, or the votes of the job mean nothing."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from horovod_detox.determinism.conditions import Conditions
from horovod_detox.determinism.oddity import Oddity


def mean_nothing(
    oddities: Sequence[Oddity],
    teams: Sequence[Sequence[int]],
    table: np.ndarray,
    conditions: Sequence[Conditions],
) -> bool:
    """Return whether honest ranks are accused, or have no vote, in most teams.

    A team is in doubt when members differ that have other settings, or when there is no majority.
    Where one rank, or one host with less than half of the ranks, explains all of that, it is at
    fault, whatever settings of its own it has, as long as some team has a majority.

    Args:
        oddities: who differs in each team.
        teams: ranks that should hold the same bits.
        table: `(p, tensors, 2)` of int64, the fingerprints of what each rank holds.
        conditions: of every rank.
    """

    def in_doubt(without: Collection[int]) -> int:
        return sum(_is_in_doubt(oddities, team, table, set(without)) for team in teams)

    if 2 * in_doubt(()) <= len(teams):
        return False
    undecided = {oddity.among for oddity in oddities if not oddity.outvoted}
    cannot_go_on = len(undecided) == len(teams)
    return cannot_go_on or all(in_doubt(suspects) for suspects in _suspects(conditions))


def of_one(oddities: Sequence[Oddity], conditions: Sequence[Conditions]) -> bool:
    """Return whether all that differ, outvoted by the others, are one rank, or of one host."""
    odd = {rank for oddity in oddities for rank in oddity.ranks}
    are_outvoted = all(oddity.outvoted for oddity in oddities)
    return are_outvoted and any(odd <= set(suspects) for suspects in _suspects(conditions))


def _suspects(conditions: Sequence[Conditions]) -> Iterator[Sequence[int]]:
    """Yield what may be at fault together: each rank, and each host with less than half of them."""
    by_host: dict[str, list[int]] = {}
    for rank, each in enumerate(conditions):
        yield (rank,)
        by_host.setdefault(each.get("host", ""), []).append(rank)
    yield from (ranks for ranks in by_host.values() if 2 * len(ranks) < len(conditions))


def _is_in_doubt(
    oddities: Sequence[Oddity], team: Sequence[int], table: np.ndarray, without: set[int]
) -> bool:
    """Return whether a team is in doubt if some ranks are left out."""
    its = [oddity for oddity in oddities if oddity.among == tuple(team)]
    if not its or its[0].outvoted:
        return any(oddity.causes and set(oddity.ranks) - without for oddity in its)
    left = [rank for rank in team if rank not in without]
    return bool((table[left] != table[left[:1]]).any())

"""The end of Horovod's join: engines go on together, though some ranks were away."""

from collections.abc import Mapping, Sequence

from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.vote.groups import Groups


def rejoin(
    collectives: Collectives, groups: Groups, engines: Mapping[str, Engine]
) -> dict[str, int]:
    """Let the engines of all ranks go on in the same step; return it for each name.

    Args:
        collectives: of all ranks, all of which have joined.
        groups: of the ranks.
        engines: of this rank, by name, that have begun.
    """
    steps = share(collectives, "rejoin", {name: engine.step for name, engine in engines.items()})
    names = {name for theirs in steps for name in theirs}
    latest = {name: _latest(groups, [theirs.get(name, 0) for theirs in steps]) for name in names}
    for name, engine in engines.items():
        engine.rejoin(latest[name])
    return latest


def _latest(groups: Groups, steps: Sequence[int]) -> int:
    """Return the latest step that most ranks of some group have reached.

    >>> _latest(Groups(((0, 1, 2), (3, 4, 5))), [4, 4, 9, 6, 6, 6])
    6
    """
    return max(
        sorted(steps[rank] for rank in ranks)[(len(ranks) - 1) // 2] for ranks in groups.members
    )

"""Metrics of an epoch, the same on all ranks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from horovod_detox.vote.groups import Groups


def average_over_groups(values: Sequence[float], groups: Groups) -> float:
    """Average one value by rank: that of the majority, or else the mean, of every group.

    >>> average_over_groups([1.0, 1.0, 99.0, 3.0, 3.0, 3.0], Groups(((0, 1, 2), (3, 4, 5))))
    2.0
    """
    votes = []
    for members in groups.members:
        theirs = [values[rank] for rank in members]
        value, count = Counter(theirs).most_common(1)[0]
        votes.append(value if 2 * count > len(theirs) else float(np.mean(theirs)))
    return votes[0] if len(set(votes)) == 1 else float(np.mean(votes))


def averages(everyones: Sequence[Mapping[str, float]], groups: Groups) -> dict[str, float]:
    """Average all metrics that every rank has.

    >>> averages([{"loss": 1.0, "val_loss": 2.0}, {"loss": 3.0}], Groups(((0,), (1,))))
    {'loss': 2.0}
    """
    common = [name for name in everyones[0] if all(name in theirs for theirs in everyones)]
    return {
        name: average_over_groups([theirs[name] for theirs in everyones], groups) for name in common
    }


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return those of the logs that are numbers.

    >>> numbers({"loss": 1, "note": "none"})
    {'loss': 1.0}
    """
    kinds = int, float, np.number
    return {name: float(value) for name, value in logs.items() if isinstance(value, kinds)}

"""One decision from what the ranks think, in which a minority of each group does not count."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from horovod_detox.vote.groups import Groups


class NoAgreement(RuntimeError):
    """No value is that of most groups, or no group has a majority."""


def votes_of(values: Sequence[Any], groups: Groups) -> tuple[dict[int, Any], list[int]]:
    """Return what most members of each group say, by group, and the ranks that say otherwise.

    A group without a majority has no vote, and nobody in it is named.

    >>> votes_of([1, 1, 9, 3, 4, 5], Groups(((0, 1, 2), (3, 4, 5))))
    ({0: 1}, [2])
    """
    texts = [json.dumps(value, sort_keys=True) for value in values]
    votes, others = {}, []
    for group, members in enumerate(groups.members):
        text, count = Counter(texts[rank] for rank in members).most_common(1)[0]
        if 2 * count > len(members):
            votes[group] = values[next(rank for rank in members if texts[rank] == text)]
            others += [rank for rank in members if texts[rank] != text]
    return votes, others


def _of_most_groups(votes: Mapping[int, Any], groups: Groups) -> Any:
    """Return the vote of more than half of the groups."""
    texts = {group: json.dumps(vote, sort_keys=True) for group, vote in votes.items()}
    text, count = Counter(texts.values()).most_common(1)[0]
    if 2 * count <= len(groups):
        said = {f"group {group}": vote for group, vote in votes.items()}
        raise NoAgreement(f"hvd.agree: no value has a majority of the {len(groups)} groups: {said}")
    return next(vote for group, vote in votes.items() if texts[group] == text)


RULES: dict[str, Callable[[Mapping[int, Any], Groups], Any]] = {
    "majority": _of_most_groups,
    "median": lambda votes, groups: median(votes.values()),
    "mean": lambda votes, groups: fmean(votes.values()),
}
"""From the groups' votes to one value."""


def agreed(votes: Mapping[int, Any], groups: Groups, by: str) -> Any:
    """Return what the votes of the groups come to.

    >>> agreed({0: True, 1: False, 2: True}, Groups(((0,), (1,), (2,))), "majority")
    True
    >>> agreed({0: 1.0, 1: 50.0, 2: 2.0}, Groups(((0,), (1,), (2,))), "median")
    2.0

    Raises:
        NoAgreement: when no group has a vote, or no value has most groups.
    """
    if not votes:
        raise NoAgreement("hvd.agree: no group has a majority: do its members see the same data?")
    return RULES[by](votes, groups)

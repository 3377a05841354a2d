"""Who is to blame when a slice arrives otherwise than it was fingerprinted: sender or receiver."""

from collections.abc import Collection
from typing import NamedTuple

Pair = tuple[int, int]
"""A sender, and a receiver that says it received other words than these were fingerprinted."""


class Blame(NamedTuple):
    """What accusations come to.

    Attributes:
        senders: who sent other words than they had fingerprinted.
        receivers: who do not receive what others send.
        suspects: the pairs of which one is faulty, nobody knows which.
    """

    senders: frozenset[int] = frozenset()
    receivers: frozenset[int] = frozenset()
    suspects: frozenset[Pair] = frozenset()


def blame(
    accusations: Collection[Pair],
    senders: Collection[int] = (),
    receivers: Collection[int] = (),
    suspects: Collection[Pair] = (),
) -> Blame:
    """Return who is to blame: one word is not enough, two of different ranks are.

    Args:
        accusations: the pairs of this step.
        senders: the accused whose words most ranks found wrong when they were shown to all.
        receivers: who found wrong what most found right.
        suspects: the pairs of earlier steps of which one is faulty.

    >>> blame([(1, 4)])
    Blame(senders=frozenset(), receivers=frozenset(), suspects=frozenset({(1, 4)}))
    >>> blame([(1, 4), (1, 5), (2, 6)], suspects=[(0, 6)])
    Blame(senders=frozenset({1}), receivers=frozenset({6}), suspects=frozenset())
    >>> blame([(1, 4), (2, 4)], senders=[1])
    Blame(senders=frozenset({1}), receivers=frozenset(), suspects=frozenset({(2, 4)}))
    >>> blame([(4, 4), (4, 2)])
    Blame(senders=frozenset(), receivers=frozenset({4}), suspects=frozenset())
    >>> blame([(4, 4), (4, 2), (4, 3)])
    Blame(senders=frozenset({4}), receivers=frozenset(), suspects=frozenset())
    """
    guilty, deaf = set(senders), set(receivers)
    known = {*accusations, *suspects}
    left = {(a, o) for a, o in known if a not in guilty and o not in deaf}
    guilty |= {a for a, _ in left if len({o for b, o in left if b == a != o}) > 1}
    left = {(a, o) for a, o in left if a not in guilty}
    # What a rank received from itself is its own fault.
    deaf |= {o for b, o in left if b == o or len({a for a, other in left if other == o}) > 1}
    accused, accusers = {a for a, _ in accusations}, {o for _, o in accusations}
    named = guilty | deaf
    return Blame(
        frozenset(guilty & accused),
        frozenset(deaf & {*accusers, *receivers}),
        frozenset((a, o) for a, o in accusations if a not in named and o not in named),
    )

"""What follows when a slice arrives otherwise than it was fingerprinted.

It may be the sender's fault or the receiver's. So the sender shows its slice to all ranks, which
tell whether it is as it was fingerprinted: that is for most of them to say, and for nobody alone.
It takes a broadcast of each such slice and one allgather, in no exchange but such a one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from horovod_detox.arrays.namespaces import Words, namespace
from horovod_detox.exchange.step import Step
from horovod_detox.vote.suspicion import Pair, blame


class Accusation(NamedTuple):
    """A rank says that it received a slice otherwise than its sender had fingerprinted it."""

    part: int
    sender: int
    slice: int
    accuser: int


class Accused(Exception):
    """Some rank did not receive what its sender had fingerprinted.

    Attributes:
        found: all accusations.
    """

    def __init__(self, found: Collection[Accusation]) -> None:
        super().__init__(found)
        self.found = found


class Deaf(Exception):
    """Owners do not receive what others send: their slices are to be computed by others."""


class Silenced(Exception):
    """No rank of a group sends a slice as it fingerprinted it, so the group has no vote.

    Attributes:
        group: its number.
    """

    def __init__(self, group: int) -> None:
        super().__init__(group)
        self.group = group


@dataclass
class Findings:
    """Who was found to be at fault in one exchange, beside the dissenters of the vote.

    Attributes:
        senders: who sent other words than they had fingerprinted.
        receivers: who do not receive what others send.
        suspects: pairs of a sender and a receiver, of which one is faulty.
        wrong: who computed otherwise than most who computed the same.
    """

    senders: set[int] = field(default_factory=set)
    receivers: set[int] = field(default_factory=set)
    suspects: set[Pair] = field(default_factory=set)
    wrong: set[int] = field(default_factory=set)


def show(
    step: Step,
    accusations: Collection[Accusation],
    told: Callable[[Accusation], tuple[tuple[int, int], np.ndarray]],
    findings: Findings,
) -> dict[Accusation, Words]:
    """Have the accused show what they sent; add to the findings who is to blame.

    Args:
        step: what this rank brings.
        accusations: of all ranks.
        told: returns the bounds of a slice, and its fingerprint as its sender told it.
        findings: added to.

    Returns:
        what was shown, for each accusation: right on most ranks, unless the sender is to blame.
    """
    collectives, rank = step.collectives, step.collectives.rank
    shown: dict[tuple[int, int, int], Words] = {}
    wrong = []
    for each in sorted(accusations):
        if each[:3] in shown:
            continue
        (start, stop), digest = told(each)
        words = namespace(step.copy).copy(step.copy[start:stop])
        collectives.broadcast(f"evidence.{len(shown)}", words, each.sender).wait()
        shown[each[:3]] = words
        wrong.append((step.fingerprints.of_each([words], [start])[0] != digest).any())
    flags = collectives.allgather("evidence", np.array(wrong, np.int64)).wait()
    by_rank = flags.reshape(collectives.size, -1).astype(bool)
    most = 2 * by_rank.sum(axis=0) > collectives.size
    senders = {sender for (_, sender, _), is_wrong in zip(shown, most, strict=True) if is_wrong}
    receivers = set(np.flatnonzero((by_rank & ~most).any(axis=1)).tolist())
    pairs = {(each.sender, each.accuser) for each in accusations} | findings.suspects
    found = blame(pairs, senders, receivers, step.memory.suspects)
    findings.senders |= found.senders
    findings.receivers |= found.receivers
    findings.suspects = set(found.suspects)
    return {each: shown[each[:3]] for each in accusations if rank == each.accuser}

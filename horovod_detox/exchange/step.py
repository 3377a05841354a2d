"""What an exchange is given and returns, and the one place that decides when there is no update."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from horovod_detox.aggregators import Aggregator, Hierarchy, TooFewVotes
from horovod_detox.arrays.namespaces import Copy, Words
from horovod_detox.exchange.collectives import Collectives, Message, RanksJoined
from horovod_detox.exchange.control import Control
from horovod_detox.exchange.momentum import Means, Momentum
from horovod_detox.packing.layout import Buffers
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import Verdict
from horovod_detox.vote.suspicion import Pair


class Plan(Protocol):
    """What an exchange must know of the settings; `config.Plan` is one."""

    @property
    def groups(self) -> Groups: ...
    @property
    def rule(self) -> Hierarchy: ...
    def rule_without(
        self, silenced: Collection[int], joined: Collection[int] = ()
    ) -> Hierarchy: ...
    @property
    def captured(self) -> int: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def witnesses(self) -> int: ...


@dataclass(frozen=True)
class Memory:
    """What is known from earlier steps.

    Attributes:
        previous: `(w,)` words of the latest finite update, for rules that keep a centre; None: no
            rule needs it, or there was none.
        distrusted: the ranks that dissented lately, or are suspected: others send for them.
        unreliable: the ranks that lately received badly or held another update: they own no slice.
        suspects: pairs of a sender and a receiver, one of which was faulty lately.
        momentum: makes running means of the votes, of which each rank has those of the slices that
            it aggregates; None: the rule is given the votes.
    """

    previous: Words | None = None
    distrusted: frozenset[int] = frozenset()
    unreliable: frozenset[int] = frozenset()
    suspects: frozenset[Pair] = frozenset()
    momentum: Momentum | None = None

    def cut(self, start: int, stop: int) -> "Memory":
        """Return what is known of a slice of the words."""
        previous = None if self.previous is None else self.previous[start:stop]
        momentum = None if self.momentum is None else self.momentum.cut(start, stop)
        return replace(self, previous=previous, momentum=momentum)


AT_FIRST = Memory()
"""What is known before the first step."""


@dataclass(frozen=True)
class Step:
    """What one rank brings to one exchange.

    Attributes:
        collectives: of the p ranks of the plan.
        plan: groups, and the rule of this step.
        buffers: what the words of the copy are.
        copy: `(w,)` words, this rank's copy of its group's gradient; left as it is.
        control: what this rank tells all others with its first message; what they tell is heard
            before anything else that was received is used.
        fingerprints: of this step.
        memory: what is known from earlier steps.
        update: `(w,)` words of any contents, which the update is written to.
        is_complete: whether this rank has all of its gradients; else its copy is what it has.
    """

    collectives: Collectives
    plan: Plan
    buffers: Buffers
    copy: Copy
    control: Control
    fingerprints: Fingerprints
    memory: Memory
    update: Words
    is_complete: bool = True

    def begin(self, send: Callable[[np.ndarray, Copy], Sequence[Message]]) -> Sequence[Message]:
        """Return the messages that begin an exchange, when each brings the copy of a rank.

        Args:
            send: sends facts and this rank's copy, or nothing of it; returns the messages of all.

        Raises:
            Postponed: on every rank, when too many have not all of their gradients.
        """
        is_complete = self.is_complete
        while True:
            told = self.control.tell(is_complete=is_complete)
            messages = send(told, self.copy if is_complete else self.copy[:0])
            self.control.hear([message.facts for message in messages])
            if not (self.control.incomplete or self.control.joined):
                return messages
            self.go_on()
            is_complete = True

    def go_on(self) -> None:
        """Go on though gradients are missing on some ranks, where they count as zero.

        It must be more groups than faulty ranks can capture whose ranks, for the most part, have
        all of theirs.

        Raises:
            Postponed: on every rank, when it is not.
            RanksJoined: on every rank, when some have no more data.
        """
        if self.control.joined:
            raise RanksJoined(f"ranks {sorted(self.control.joined)} have joined")
        incomplete, self.control.incomplete = self.control.incomplete, set()
        complete = set(range(self.collectives.size)) - incomplete
        if self.plan.groups.with_most_of(complete) <= self.plan.captured:
            raise Postponed

    def cut(self, start: int, stop: int) -> "Step":
        """Return the step of a slice of the words."""
        return replace(
            self,
            buffers=self.buffers.cut(start, stop),
            copy=self.copy[start:stop],
            memory=self.memory.cut(start, stop),
            update=self.update[start:stop],
        )


class Postponed(Exception):
    """The backward pass is not the last of this step: gradients are missing on too many ranks."""


class NoMajority(RuntimeError):
    """Too many groups lost their majority for an update to be computed.

    Attributes:
        verdict: the votes, as far as they are known.
        non_finite: the groups whose vote held NaN or infinity.
    """

    def __init__(
        self, text: str, verdict: Verdict | None = None, non_finite: tuple[int, ...] = ()
    ) -> None:
        super().__init__(text)
        self.verdict, self.non_finite = verdict, non_finite


@dataclass(frozen=True)
class Outcome:
    """The result of one exchange.

    Attributes:
        update: `(w,)` words, the aggregated gradient; the same bits on every rank.
        verdict: the vote of every group.
        non_finite: the groups whose vote held NaN or infinity.
        named: the ranks at fault otherwise than by their vote, by kind: see `vote.report`.
        suspects: pairs of a sender and a receiver, one of which is faulty.
        means: with momentum, those that this rank computed.
        digest: `(2,)` of int64, of the update, if the exchange took it; the same on every rank.
        failure: why the update is zero and the step to be skipped; None: it is not.
        is_repeated: whether the exchange was done again: what was said of parts of the update
            before does not hold.
    """

    update: Words
    verdict: Verdict
    non_finite: tuple[int, ...]
    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    suspects: frozenset[Pair] = frozenset()
    means: Means = field(default_factory=dict)
    digest: np.ndarray | None = None
    failure: NoMajority | None = None
    is_repeated: bool = False

    @property
    def is_finite(self) -> bool:
        """Return whether at most half of the votes were not finite, and so the update is."""
        return 2 * len(self.non_finite) <= len(self.verdict.winners)


class Exchange(Protocol):
    """A way for copies and votes to travel: a module with this function."""

    def exchange(self, step: Step) -> Outcome:
        """Turn what this rank brings into the outcome of all ranks.

        Raises:
            NoMajority: on every rank, when the votes left are too few for the rule.
        """
        ...


def rule_for(plan: Plan, verdict: Verdict, non_finite: tuple[int, ...]) -> Aggregator | None:
    """Return the rule fitted to the finite votes of this step; None: the update is not finite.

    Abstaining groups are left out, which lowers no f that was declared. Non-finite votes are left
    out too, unless more than half of the votes are: then so is the update, and AMP's GradScaler
    skips the step as usual.

    Raises:
        NoMajority: when what is left is too little for the rule.
    """
    votes = len(verdict.winners)
    if not votes:
        reason = "every group lost its majority"
        raise NoMajority(_explain(plan, verdict, reason), verdict, non_finite)
    if 2 * len(non_finite) > votes:
        return None
    try:
        rule = plan.rule_without(verdict.abstentions, verdict.joined)
        return rule.fit(votes - len(non_finite))
    except TooFewVotes as error:
        text = _explain(plan, verdict, str(error))
        raise NoMajority(text, verdict, non_finite) from None


def _explain(plan: Plan, verdict: Verdict, reason: str) -> str:
    suspects = ", ".join(
        f"group {group} (ranks {', '.join(map(str, plan.groups.members[group]))})"
        for group in verdict.abstentions
    )
    same = f"the same within tolerance = {plan.tolerance}" if plan.tolerance else "the same bits"
    return (
        f"no update in this step: {reason}. Without a majority: {suspects or 'none'}. "
        f"If no rank is faulty, the ranks of a group do not compute {same}: give them the "
        "same data (GroupSampler or shard; under the launcher DistributedSampler or shard of "
        "tf.data), random state (seed_group, no seed by rank), thread count and library versions; "
        "a loss that gathers from all ranks must gather from groups (docs/decisions.md)"
    )

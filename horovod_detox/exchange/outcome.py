"""What an exchange is and returns, and the one place that decides when there is no update."""

from dataclasses import dataclass
from typing import Any, Protocol

from horovod_detox.aggregators import Aggregator, TooFewVotes
from horovod_detox.config import Plan
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.momentum import Momentum
from horovod_detox.layout import Layout
from horovod_detox.vote import Verdict


@dataclass(frozen=True)
class Memory:
    """What is known from earlier steps.

    Attributes:
        previous: `(w,)` words of the latest finite update, for rules that keep a centre; None: no
            rule needs it, or there was none.
        distrusted: the ranks that dissented lately.
        momentum: makes running means of the votes, of which each rank has those of the slices that
            it aggregates; None: the rule is given the votes.
    """

    previous: Any | None = None
    distrusted: frozenset[int] = frozenset()
    momentum: Momentum | None = None

    def cut(self, start: int, stop: int) -> "Memory":
        """Return what is known of a slice of the words."""
        previous = None if self.previous is None else self.previous[start:stop]
        momentum = None if self.momentum is None else self.momentum.cut(start, stop)
        return Memory(previous, self.distrusted, momentum)


AT_FIRST = Memory()
"""What is known before the first step."""


@dataclass(frozen=True)
class Outcome:
    """The result of one exchange.

    Attributes:
        update: `(w,)` words, the aggregated gradient; the same bits on every rank.
        verdict: the vote of every group.
        non_finite: the groups whose vote held NaN or infinity.
        miscalculators: the ranks whose part of the aggregation differed from that of most who
            computed it, ascending.
    """

    update: Any
    verdict: Verdict
    non_finite: tuple[int, ...]
    miscalculators: tuple[int, ...] = ()

    @property
    def is_finite(self) -> bool:
        """Return whether at most half of the votes were not finite, and so the update is."""
        return 2 * len(self.non_finite) <= len(self.verdict.winners)


class Exchange(Protocol):
    """A way for copies and votes to travel: this rank's copy in, the outcome of all ranks out.

    Args:
        collectives: of the p ranks of the plan.
        plan: groups, and the rule of this step.
        layout: what the words of the copy are.
        copy: `(w,)` words, this rank's copy of its group's gradient.
        agreement: raises when the ranks do not hold the same layout; waited for before anything
            that was received is used.
        memory: what is known from earlier steps.
        update: `(w,)` words of any contents, which the update is written to.

    Raises:
        NoMajority: on every rank, when the votes left are too few for the rule.
    """

    def __call__(
        self,
        collectives: Collectives,
        plan: Plan,
        layout: Layout,
        copy: Any,
        agreement: Handle,
        memory: Memory,
        update: Any,
    ) -> Outcome: ...


class NoMajority(RuntimeError):
    """Too many groups lost their majority for an update to be computed."""


def rule_for(plan: Plan, verdict: Verdict, non_finite: tuple[int, ...]) -> Aggregator | None:
    """Return the rule fitted to the finite votes of this step; None: the update is not finite.

    Abstaining groups are left out. Non-finite votes are left out too, unless more than half of
    the votes are: then so is the update, and AMP's GradScaler skips the step as usual.

    Raises:
        NoMajority: when what is left is too little for the rule.
    """
    votes = len(verdict.winners)
    if not votes:
        raise NoMajority(_explain(plan, verdict, "every group lost its majority"))
    if 2 * len(non_finite) > votes:
        return None
    try:
        return plan.rule.fit(votes - len(non_finite))
    except TooFewVotes as error:
        raise NoMajority(_explain(plan, verdict, str(error))) from None


def _explain(plan: Plan, verdict: Verdict, reason: str) -> str:
    suspects = ", ".join(
        f"group {group} (ranks {', '.join(map(str, plan.groups.members[group]))})"
        for group in verdict.abstentions
    )
    tolerance = plan.config.tolerance
    same = f"the same within tolerance = {tolerance}" if tolerance else "the same bits"
    return (
        f"no update in this step: {reason}. Without a majority: {suspects or 'none'}. "
        f"If no rank is faulty, the ranks of a group do not compute {same}: give them the "
        "same data (GroupSampler), random state (seed_group), thread count and library versions"
    )

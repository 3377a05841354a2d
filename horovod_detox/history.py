"""What a job carries from exchange to exchange."""

from dataclasses import replace
from typing import Any

from horovod_detox.arrays import namespace
from horovod_detox.config import Plan
from horovod_detox.exchange.outcome import Memory, Outcome
from horovod_detox.faults import Ledger
from horovod_detox.layout import Layout

DISTRUSTED_STEPS = 1000
"""A rank that dissented is not relied upon for so many steps."""


class History:
    """What a job carries from exchange to exchange, the same on every rank.

    Attributes:
        plan: settings, groups and rule.
        ledger: the account of faults.
        step: number of exchanges so far.
    """

    def __init__(self, plan: Plan, ledger: Ledger | None = None) -> None:
        self.plan = plan
        self.ledger = ledger or Ledger(plan.groups)
        self.step = 0
        self._layout: Layout | None = None
        self._previous: Any | None = None
        self._last_dissent: dict[int, int] = {}

    def plan_now(self) -> Plan:
        """Return the plan with the rule of this step."""
        return replace(self.plan, rule=self.plan.rule.at(self.step))

    def memory(self, layout: Layout) -> Memory:
        """Recall what is known; an update of other parameters is no centre any more.

        Raises:
            ValueError: when the rule needs more than the signs that the copies are.
        """
        if layout != self._layout and layout.buffers.signs:
            self.plan.check_signs()
        lately = self.step - DISTRUSTED_STEPS
        distrusted = frozenset(rank for rank, step in self._last_dissent.items() if step >= lately)
        return Memory(self._previous if layout == self._layout else None, distrusted)

    def record(self, outcome: Outcome, layout: Layout) -> Outcome:
        """Take down an outcome; of its update, which its receiver may write to, keep a copy."""
        self.ledger.record(self.step, outcome.verdict, outcome.non_finite, outcome.miscalculators)
        self._last_dissent |= dict.fromkeys(outcome.verdict.dissenters, self.step)
        if layout != self._layout:
            self._layout, self._previous = layout, None
        if self.plan.rule.uses_previous and outcome.is_finite:
            self._previous = namespace(outcome.update).copy(outcome.update)
        self.step += 1
        return outcome

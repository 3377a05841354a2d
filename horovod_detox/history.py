"""What a job carries from exchange to exchange."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from horovod_detox.arrays.namespaces import Words, namespace, view
from horovod_detox.config import Plan
from horovod_detox.exchange.momentum import Means, Momentum, updated
from horovod_detox.exchange.step import Memory, NoMajority, Outcome
from horovod_detox.packing.layout import Layout
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.majority import Verdict
from horovod_detox.vote.report import DIVERGENCE, NOTHING_FOUND, RECEPTION, Findings
from horovod_detox.vote.suspicion import Pair

DISTRUSTED_STEPS = 1000
"""A rank that dissented is not relied upon for so many steps."""


class History:
    """What a job carries from exchange to exchange.

    It is the same on every rank, but for the means of momentum: each has those of its slices.

    Attributes:
        plan: settings, groups and rule.
        ledger: the account of faults.
        step: number of exchanges so far.
        skipped: how many of the latest had no update.
    """

    def __init__(self, plan: Plan, ledger: Ledger | None = None) -> None:
        self.plan = plan
        self.ledger = ledger or Ledger(plan.groups)
        self.step = self.skipped = 0
        self._layout: Layout | None = None
        self._previous: Words | None = None
        self._means: Means = {}
        self._last_dissent: dict[int, int] = {}
        self._last_unreliable: dict[int, int] = {}
        self._last_suspects: dict[Pair, int] = {}

    def plan_now(self) -> Plan:
        """Return the plan with the rule of this step."""
        return self.plan.at(self.step)

    def memory(self, layout: Layout) -> Memory:
        """Recall what is known for an exchange; of other parameters nothing is.

        Raises:
            ValueError: when the rule needs more than the signs that the copies are.
        """
        if layout != self._layout and layout.buffers.signs:
            self.plan.check_signs()
        suspects = self._lately(self._last_suspects)
        distrusted = self._lately(self._last_dissent) | {sender for sender, _ in suspects}
        previous, means = self._previous, self._means
        if layout != self._layout:
            previous, means = None, {}
        beta = self.plan.config.momentum
        momentum = Momentum(beta, means, (0, layout.words)) if beta else None
        return Memory(previous, distrusted, self.unreliable(), suspects, momentum)

    def unreliable(self) -> frozenset[int]:
        """Return the ranks that own no slice, as they lately received badly or diverged."""
        return self._lately(self._last_unreliable)

    def begin_anew(self, step: int) -> None:
        """Forget all but the ledger, as ranks that were away know nothing of what there was."""
        self.step, self.skipped = step, 0
        self._layout, self._previous, self._means = None, None, {}
        self._last_dissent, self._last_unreliable, self._last_suspects = {}, {}, {}

    def _lately(self, last: Mapping[Any, int]) -> frozenset[Any]:
        """Return what happened in one of the latest `DISTRUSTED_STEPS`, given when it last did."""
        first = self.step - DISTRUSTED_STEPS
        return frozenset(key for key, step in last.items() if step >= first)

    def record(
        self, outcome: Outcome, layout: Layout, findings: Findings = NOTHING_FOUND
    ) -> Outcome:
        """Take down the outcome of the exchange that was given the latest `memory`.

        Of its update, which its receiver may write to, a copy is kept. One that is not finite
        leaves no trace but in the ledger.
        """
        self._enter(outcome.verdict, outcome.non_finite, outcome.named, outcome.suspects, findings)
        self.skipped = 0
        if layout != self._layout:
            self._layout, self._previous, self._means = layout, None, {}
        if outcome.is_finite and self.plan.rule.uses_previous:
            self._previous = namespace(outcome.update).copy(outcome.update)
        if outcome.is_finite:
            self._means = updated(self._means, outcome.means)
        return outcome

    def skip(
        self,
        failure: NoMajority,
        most: int,
        named: Mapping[str, Sequence[int]],
        findings: Findings = NOTHING_FOUND,
    ) -> None:
        """Take down a step without an update, which leaves no trace but in the ledger.

        Args:
            failure: why there is none.
            most: so many steps in a row may be skipped.
            named: as of an outcome.
            findings: of what ranks hold alike.

        Raises:
            NoMajority: when so many were skipped before.
        """
        step = self.step
        self._enter(failure.verdict or Verdict(()), failure.non_finite, named, (), findings)
        if not most:
            raise failure
        is_fault = not (failure.verdict and failure.verdict.joined)
        if is_fault and self.skipped >= most:
            raise NoMajority(
                f"step {step}: {failure}. Detox(max_skipped_steps={most}) skips no more in a row. "
                f"So far: {self.ledger.report()}",
                failure.verdict,
                failure.non_finite,
            ) from failure
        self.skipped += is_fault
        self.ledger.skip(
            f"step {step}: {failure}. All ranks skip the step, up to {most} in a row "
            "(Detox(max_skipped_steps=))"
        )

    def leave_out(self) -> None:
        """Count a step in which there was nothing to note."""
        self._enter(Verdict(()), (), {})

    def _enter(
        self,
        verdict: Verdict,
        non_finite: tuple[int, ...],
        named: Mapping[str, Sequence[int]],
        suspects: Collection[Pair] = (),
        findings: Findings = NOTHING_FOUND,
    ) -> None:
        """Note in the ledger what was found in a step, and whom to distrust; count the step."""
        self.ledger.record(self.step, verdict, non_finite, named, suspects, findings)
        for kind in (RECEPTION, DIVERGENCE):
            self._last_unreliable |= dict.fromkeys(named.get(kind, ()), self.step)
        self._last_suspects |= dict.fromkeys(suspects, self.step)
        self._last_dissent |= dict.fromkeys(verdict.dissenters, self.step)
        self.step += 1

    def state(self) -> dict[str, Any]:
        """Return all but the ledger and whom to distrust, to go on from; not to be written to.

        The arrays are words and means as they are, of NumPy or of torch.
        """
        return {
            "step": self.step,
            "parameters": None if self._layout is None else self._layout.parameters,
            "previous": self._previous,
            "means": self._means,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, on the same plan; tensors may have become arrays."""
        parameters = state["parameters"]
        self.step = state["step"]
        self._layout = None if parameters is None else Layout(parameters)
        self._previous = state["previous"]
        self._means = {
            words: {group: view(mean) for group, mean in means.items()}
            for words, means in state["means"].items()
        }

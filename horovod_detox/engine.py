"""One exchange after another: what the frontends call."""

from dataclasses import replace
from typing import Any

import numpy as np

from horovod_detox.arrays import namespace
from horovod_detox.config import Plan
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.facts import share
from horovod_detox.exchange.outcome import Exchange, Memory, Outcome
from horovod_detox.faults import Ledger
from horovod_detox.fingerprint import WORDS, fingerprint
from horovod_detox.layout import WORD, Layout, difference

DISTRUSTED_STEPS = 1000
"""A rank that dissented is not relied upon for so many steps."""


class RanksDisagree(RuntimeError):
    """The ranks are not in the same step, or do not hold the same parameters or updates."""


class Engine:
    """The state that a rank carries from exchange to exchange.

    Attributes:
        plan: settings, groups and rule.
        ledger: the account of faults.
        step: number of exchanges so far.
    """

    def __init__(self, plan: Plan, collectives: Collectives, ledger: Ledger | None = None) -> None:
        self.plan = plan
        self.ledger = ledger or Ledger(plan.groups)
        self.step = 0
        self._collectives = collectives
        self._digest = np.zeros(WORDS, dtype=np.int64)
        self._previous: Any | None = None
        self._layout: Layout | None = None
        self._last_dissent: dict[int, int] = {}

    def exchange(self, copy: Any, layout: Layout, update: Any | None = None) -> Outcome:
        """Turn this rank's copy, `(w,)` words, into the update that all ranks share.

        Args:
            copy: left as it is.
            layout: what the words are.
            update: `(w,)` words that the update may be written to; None: new ones.

        Raises:
            RanksDisagree: on every rank, when the parameters or the updates so far differ.
            NoMajority: on every rank, when too many groups lost their majority.
            ExchangeTimeout: when some rank does not take part.
        """
        plan = replace(self.plan, rule=self.plan.rule.at(self.step))
        agreement = _Agreement(self._collectives, self.step, layout, self._digest)
        if update is None:
            update = namespace(copy).empty((layout.words,), copy, "int64")
        exchange = self._exchange_of(layout)
        outcome = exchange(
            self._collectives, plan, layout, copy, agreement, self._memory(layout), update
        )
        self.ledger.record(self.step, outcome.verdict, outcome.non_finite, outcome.miscalculators)
        self._remember(outcome, len(copy))
        self.step += 1
        return outcome

    def _exchange_of(self, layout: Layout) -> Exchange:
        """Choose the exchange: small gradients without witnesses take one round."""
        config, copies = self.plan.config, WORD * layout.words * self._collectives.size
        one_round = copies <= config.one_round_bytes and not config.witnesses
        small = config.exchange == "sharded" and one_round
        return EXCHANGES["gathered" if small else config.exchange]

    def _memory(self, layout: Layout) -> Memory:
        """Recall what was kept; an update of other parameters is no centre any more."""
        if self._layout != layout:
            if layout.buffers.signs:
                self.plan.check_signs()
            self._layout, self._previous = layout, None
        lately = self.step - DISTRUSTED_STEPS
        distrusted = frozenset(rank for rank, step in self._last_dissent.items() if step >= lately)
        return Memory(self._previous, distrusted)

    def _remember(self, outcome: Outcome, words: int) -> None:
        """Keep what later steps need, apart from the update, which its receiver may write to."""
        self._last_dissent |= dict.fromkeys(outcome.verdict.dissenters, self.step)
        self._digest = fingerprint(outcome.update, [(0, words)])[0]
        if self.plan.rule.uses_previous and outcome.is_finite:
            self._previous = namespace(outcome.update).copy(outcome.update)


class _Agreement:
    """The check, under way beside the copies, that all ranks are about to do the same."""

    def __init__(
        self, collectives: Collectives, step: int, layout: Layout, update_digest: np.ndarray
    ) -> None:
        self._collectives = collectives
        self._layout = layout
        self._step = step
        facts = np.array([step, *layout.digest, *update_digest], dtype=np.int64)
        self._handle = collectives.allgather("agreement", facts)

    def is_done(self) -> bool:
        return self._handle.is_done()

    def wait(self) -> None:
        facts = self._handle.wait().reshape(self._collectives.size, -1)
        steps, layouts, updates = facts[:, 0], facts[:, 1:3], facts[:, 3:]
        if len(np.unique(steps)) > 1:
            raise RanksDisagree(f"the ranks are in different steps: {steps.tolist()} by rank")
        if len(np.unique(layouts, axis=0)) > 1:
            lists = share(self._collectives, "parameters", self._layout.parameters)
            raise RanksDisagree(f"the parameters differ between ranks: {difference(lists)}")
        if len(np.unique(updates, axis=0)) > 1:
            odd = _minority(updates)
            raise RanksDisagree(
                f"ranks {odd} computed another update than the others in step {self._step - 1}: "
                "the aggregation is not deterministic across these machines"
            )


def _minority(rows: np.ndarray) -> list[int]:
    """Return the indices of the rows that are not the most frequent one."""
    _, inverse, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return np.flatnonzero(inverse.ravel() != counts.argmax()).tolist()

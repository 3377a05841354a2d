"""One exchange after another: what the frontends call."""

from collections.abc import Callable
from typing import Any

import numpy as np

from horovod_detox.arrays import namespace
from horovod_detox.config import Plan
from horovod_detox.exchange import ALL_EXCHANGES
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.facts import share
from horovod_detox.exchange.outcome import Outcome
from horovod_detox.exchange.sharded import Sharded
from horovod_detox.faults import Ledger
from horovod_detox.fingerprint import WORDS, fingerprint, slice_bounds
from horovod_detox.first_step import FirstStep
from horovod_detox.history import History
from horovod_detox.layout import WORD, Layout, difference


class RanksDisagree(RuntimeError):
    """The ranks are not in the same step, or do not hold the same parameters or updates."""


class Engine:
    """One rank's part in a job's exchanges.

    Args:
        plan: settings, groups and rule.
        collectives: of the ranks.
        ledger: the account of faults; None: a new one.
        first_step: checks the first exchange; None: nothing does.

    Attributes:
        history: what it carries from exchange to exchange.
    """

    def __init__(
        self,
        plan: Plan,
        collectives: Collectives,
        ledger: Ledger | None = None,
        first_step: FirstStep | None = None,
    ) -> None:
        self.history = History(plan, ledger)
        self._collectives = collectives
        self._first_step = first_step
        self._digest = np.zeros(WORDS, dtype=np.int64)

    @property
    def plan(self) -> Plan:
        """Return settings, groups and rule."""
        return self.history.plan

    @property
    def ledger(self) -> Ledger:
        """Return the account of faults."""
        return self.history.ledger

    @property
    def step(self) -> int:
        """Return the number of exchanges so far."""
        return self.history.step

    def exchange(self, copy: Any, layout: Layout, update: Any | None = None) -> Outcome:
        """Turn this rank's copy, `(w,)` words, into the update that all ranks share.

        Args:
            copy: left as it is.
            layout: what the words are.
            update: `(w,)` words that the update may be written to; None: new ones.

        Raises:
            RanksDisagree: on every rank, when the parameters or the updates so far differ.
            NoMajority: on every rank, when too many groups lost their majority.
            NotDeterministic: on every rank, when the first step shows that votes mean nothing.
            ExchangeTimeout: when some rank does not take part.
        """
        if update is None:
            update = namespace(copy).empty((layout.words,), copy, "int64")
        exchange = ALL_EXCHANGES[self._exchange_name(layout)]
        arguments = self._arguments(copy, layout, update)
        return self._finish(lambda: exchange(*arguments), copy, layout)

    def parts(self, layout: Layout) -> list[tuple[int, int]]:
        """Return the parts in which a copy can be sent: `(start, stop)` words of each.

        There are several if the gradient is large, and no vote is needed as a whole to compute
        the update or to check it.
        """
        config, rule = self.plan.config, self.plan.rule
        in_parts = self._exchange_name(layout) == "sharded" and config.overlap_bytes > 0
        if not in_parts or config.witnesses or rule.uses_gram:
            return [(0, layout.words)]
        return slice_bounds(layout.words, -(-layout.words * WORD // config.overlap_bytes))

    def begin(self, copy: Any, layout: Layout, update: Any) -> "UnderWay":
        """Begin an exchange of which the parts are sent one by one, as their words get known.

        Args:
            copy, layout, update: as of `exchange`.
        """
        exchange = Sharded(*self._arguments(copy, layout, update), parts=self.parts(layout))
        return UnderWay(exchange, lambda: self._finish(exchange.finish, copy, layout))

    def _arguments(self, copy: Any, layout: Layout, update: Any) -> tuple[Any, ...]:
        """Return what an exchange is called with; from here on the other ranks wait for this."""
        agreement = _Agreement(self._collectives, self.step, layout, self._digest)
        if self._first_step is not None:
            self._first_step.begin(self._collectives)
        plan, memory = self.history.plan_now(), self.history.memory(layout)
        return self._collectives, plan, layout, copy, agreement, memory, update

    def _finish(self, exchange: Callable[[], Outcome], copy: Any, layout: Layout) -> Outcome:
        """Wait for an outcome and take it down; the first is checked before."""
        if self._first_step is None:
            return self._record(exchange(), layout)
        outcome = self._first_step.finish(exchange, copy, layout)
        self._first_step = None
        return self._record(outcome, layout)

    def _record(self, outcome: Outcome, layout: Layout) -> Outcome:
        self._digest = fingerprint(outcome.update, [(0, layout.words)])[0]
        return self.history.record(outcome, layout)

    def _exchange_name(self, layout: Layout) -> str:
        """Choose the exchange: small gradients without witnesses take one round."""
        config, copies = self.plan.config, WORD * layout.words * self._collectives.size
        if config.tolerance:
            return "tolerant"
        one_round = copies <= config.one_round_bytes and not config.witnesses
        small = config.exchange == "sharded" and one_round
        return "gathered" if small else config.exchange


class UnderWay:
    """An exchange of which the parts are sent one by one.

    Attributes:
        send: sends a part, whose words are final.
        advance: goes on with the parts that were sent, without waiting for another rank.
        finish: sends the parts that were not sent, waits for the other ranks and returns the
            outcome; raises what `Engine.exchange` does.
    """

    def __init__(self, exchange: Sharded, finish: Callable[[], Outcome]) -> None:
        self.send = exchange.send
        self.advance = exchange.advance
        self.finish = finish


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
        self._has_agreed = False

    def is_done(self) -> bool:
        return self._has_agreed or self._handle.is_done()

    def wait(self) -> None:
        if self._has_agreed:
            return
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
        self._has_agreed = True


def _minority(rows: np.ndarray) -> list[int]:
    """Return the indices of the rows that are not the most frequent one."""
    _, inverse, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return np.flatnonzero(inverse.ravel() != counts.argmax()).tolist()

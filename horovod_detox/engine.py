"""One exchange after another: what the frontends call, and the way of one step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from horovod_detox.arrays.namespaces import Copy, Words, namespace
from horovod_detox.arrays.nh import WORDS
from horovod_detox.config import Plan
from horovod_detox.determinism.first_step import FirstStep
from horovod_detox.exchange import ALL_EXCHANGES
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.control import Control
from horovod_detox.exchange.cut import Part, cut
from horovod_detox.exchange.sharded import Sharded
from horovod_detox.exchange.step import NoMajority, Outcome, Step
from horovod_detox.history import History
from horovod_detox.packing.layout import WORD, Layout, digest_of_text
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.ledger import Ledger


class Engine:
    """One rank's part in a job's exchanges.

    Args:
        plan: settings, groups and rule.
        collectives: of the ranks.
        ledger: the account of faults; None: a new one.
        first_step: checks the first exchange; None: nothing does.
        purpose: what the update is for, and how it is used: the same on every rank.

    Attributes:
        history: what it carries from exchange to exchange.
    """

    def __init__(
        self,
        plan: Plan,
        collectives: Collectives,
        ledger: Ledger | None = None,
        first_step: FirstStep | None = None,
        purpose: str = "",
    ) -> None:
        self.history = History(plan, ledger)
        self._collectives = collectives
        self._first_step = first_step
        self._digest = np.zeros(WORDS, dtype=np.int64)
        self._settings = digest_of_text(f"{purpose} {plan.config.describe()}")
        self._secret: bytes | None = None

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

    def exchange(self, copy: Copy, layout: Layout, update: Words | None = None) -> Outcome:
        """Turn this rank's copy into the update that all ranks share.

        Args:
            copy: `(w,)` words, left as they are.
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
        name = self._exchange_name(layout)
        step = self._begin_step(copy, layout, update)
        return self.finish(lambda: ALL_EXCHANGES[name].exchange(step), copy, layout)

    def parts(self, layout: Layout) -> list[Part]:
        """Return the parts in which a copy is sent; there are several if the gradient is large."""
        most, parts = self.plan.config.overlap_bytes, 1
        if self._exchange_name(layout) == "sharded" and most > 0:
            parts = -(-layout.words * WORD // most)
        return cut(layout.words, self._collectives.size, parts)

    def begin(
        self,
        copy: Copy,
        layout: Layout,
        update: Words,
        on_update: Callable[[int], None] = lambda part: None,
    ) -> Sharded:
        """Begin an exchange of which the parts are sent one by one, as their words get known.

        Args:
            copy, layout, update: as of `exchange`.
            on_update: is called with the number of each part whose words of the update are there,
                again if they had to be computed again.
        """
        step = self._begin_step(copy, layout, update)
        return Sharded(step, self.parts(layout), on_update)

    def finish(self, finish: Callable[[], Outcome], copy: Copy, layout: Layout) -> Outcome:
        """Return the outcome of what was begun with the same copy; raise what `exchange` does.

        Args:
            finish: waits for it.
        """
        with self._explaining(copy, layout):
            outcome = finish()
        return self._end_step(outcome, copy, layout)

    def _begin_step(self, copy: Copy, layout: Layout, update: Words) -> Step:
        """Return what this rank brings to an exchange; from here on the others wait for it."""
        control = Control(self._collectives, self.step, layout, self._digest, self._settings)
        if self._secret is None:
            self._secret = control.introduce()
        self._fingerprints = Fingerprints(self._secret, self.step, self.plan.config.fingerprint)
        if self._first_step is not None:
            self._first_step.begin(self._collectives)
        plan, memory = self.history.plan_now(), self.history.memory(layout)
        return Step(
            self._collectives,
            plan,
            layout.buffers,
            copy,
            control,
            self._fingerprints,
            memory,
            update,
        )

    @contextmanager
    def _explaining(self, copy: Copy, layout: Layout) -> Iterator[None]:
        """Say of a first exchange without a majority why there is none."""
        try:
            yield
        except NoMajority as error:
            if self._first_step is not None:
                self._first_step.explain(error, copy, layout)
            raise

    def _end_step(self, outcome: Outcome, copy: Copy, layout: Layout) -> Outcome:
        """Take an outcome down; the first is checked before."""
        if self._first_step is not None:
            self._first_step.check(outcome, copy, layout)
            self._first_step = None
        digest = outcome.digest
        if digest is None:
            digest = self._fingerprints.of(outcome.update, [(0, layout.words)])[0]
        self._digest = digest
        return self.history.record(outcome, layout)

    def _exchange_name(self, layout: Layout) -> str:
        """Choose the exchange: small gradients without witnesses take one round."""
        config, copies = self.plan.config, WORD * layout.words * self._collectives.size
        if config.tolerance:
            return "tolerant"
        one_round = copies <= config.one_round_bytes and not config.witnesses
        small = config.exchange == "sharded" and one_round
        return "gathered" if small else config.exchange

"""One exchange after another: what the frontends call, and the way of one step."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from horovod_detox.arrays.namespaces import Copy, Words, namespace
from horovod_detox.arrays.nh import WORDS
from horovod_detox.config import Plan
from horovod_detox.determinism.first_step import FirstStep
from horovod_detox.exchange import ALL_EXCHANGES, joined
from horovod_detox.exchange.collectives import Collectives, RanksJoined
from horovod_detox.exchange.control import Control
from horovod_detox.exchange.cut import Part, cut
from horovod_detox.exchange.presence import Presence
from horovod_detox.exchange.sharded import Sharded
from horovod_detox.exchange.step import NoMajority, Outcome, Step
from horovod_detox.exchange.waits import waits
from horovod_detox.history import History
from horovod_detox.packing.layout import WORD, Layout, digest_of_text
from horovod_detox.replicas.upkeep import Upkeep
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.majority import Verdict
from horovod_detox.vote.report import DIVERGENCE, NOTHING_FOUND, OUT_OF_STEP, Findings
from horovod_detox.vote.work import Tally


class Engine:
    """One rank's part in a job's exchanges.

    Args:
        plan: settings, groups and rule.
        collectives: of the ranks.
        ledger: the account of faults; None: a new one.
        first_step: checks the first exchange; None: nothing does.
        purpose: what the update is for, and how it is used: the same on every rank.
        skips: whether the caller skips a step of which the outcome says so; else `NoMajority` is
            raised in the first such step.
        presence: whether ranks have joined, the same object for all engines of a job.
        name: tells it from all other engines, see `frontend.engines.Name`.
        tally: counts exchanges, and has the number of steps; None: nothing is told of them.
        weights: returns the digest of what this rank trains; "": not known.

    Attributes:
        history: what it carries from exchange to exchange.
        has_begun: whether there was an exchange.
        ranks: who takes part, as the job counts them; empty: all.
        check: raises where the job is not what it was when it began.
        upkeep: keeps equal what ranks hold alike; None: nothing does.
    """

    def __init__(
        self,
        plan: Plan,
        collectives: Collectives,
        ledger: Ledger | None = None,
        first_step: FirstStep | None = None,
        purpose: str = "",
        skips: bool = False,
        presence: "Presence | None" = None,
        name: object = "",
        tally: Tally | None = None,
        weights: Callable[[], str] = lambda: "",
    ) -> None:
        self.history = History(plan, ledger)
        self._collectives = collectives
        self._first_step = first_step
        self._digest = np.zeros(WORDS, dtype=np.int64)
        self._settings = digest_of_text(f"{purpose} {plan.config.describe()}")
        self._skips = skips
        self._secret: bytes | None = None
        self.presence = presence or Presence()
        self.name = name
        self.tally = tally or Tally()
        self._weights_digest = weights
        self.has_begun = False
        self.ranks: tuple[int, ...] = ()
        self.check: Callable[[], None] = lambda: None
        self.upkeep: Upkeep | None = None
        self._layout: Layout
        self._steps_told = 0
        self._waited = 0.0

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

    def exchange(
        self,
        copy: Copy,
        layout: Layout,
        update: Words | None = None,
        is_complete: bool = True,
    ) -> Outcome:
        """Turn this rank's copy into the update that all ranks share.

        Args:
            copy: `(w,)` words, left as they are.
            layout: what the words are.
            update: `(w,)` words that the update may be written to; None: new ones.
            is_complete: whether this rank has all of its gradients; the missing ones are zero.

        Raises:
            Postponed: on every rank, when too many have not all of their gradients.
            RanksDisagree: on every rank, when the parameters or the updates so far differ.
            NoMajority: on every rank, when too many groups lost their majority, in this step or, if
                such steps are skipped, in too many one after another.
            NotDeterministic: on every rank, when the first step shows that votes mean nothing.
            ExchangeTimeout: when some rank does not take part.
        """
        if update is None:
            update = namespace(copy).empty((layout.words,), copy, "int64")
        name = self._exchange_name(layout)
        step = self._begin_step(copy, layout, update, is_complete)
        exchange = ALL_EXCHANGES[name].exchange
        if self.presence.some_have_joined:
            exchange = joined.exchange
        return self._finish(step, partial(exchange, step), exchange)

    def parts(self, layout: Layout) -> list[Part]:
        """Return the parts in which a copy is sent; there are several if the gradient is large."""
        most, parts = self.plan.config.overlap_bytes, 1
        if self._exchange_name(layout) == "sharded" and most > 0:
            parts = -(-layout.words * WORD // most)
        return cut(layout.words, self._collectives.size, parts, self.history.unreliable())

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

    def finish(self, begun: Sharded, finish: Callable[[], Outcome] | None = None) -> Outcome:
        """Return the outcome of an exchange that was begun; raise what `exchange` does.

        Args:
            begun: what `begin` returned; one that was postponed may be finished later.
            finish: has it finish; None: this thread does.
        """
        parts = self.parts(self._layout)
        return self._finish(
            begun.step, finish or begun.finish, lambda step: Sharded(step, parts).finish()
        )

    def _begin_step(
        self, copy: Copy, layout: Layout, update: Words, is_complete: bool = True
    ) -> Step:
        """Return what this rank brings to an exchange; from here on the others wait for it."""
        self.check()
        reached = self.presence.reached
        if reached and not self.has_begun:
            self.rejoin(reached.get(str(self.name), 0))
        self.has_begun = True
        steps = self.tally.steps or 0
        control = Control(
            self._collectives,
            self.step,
            layout,
            self._digest,
            steps - self._steps_told,
            self._settings,
            self._waited,
        )
        self._steps_told = steps
        control.wants_to_stop = self.presence.wants_to_stop
        secret = self._introduce(control)
        self._layout, self._none = layout, namespace(copy).empty((0,), copy, "int64")
        self.presence.note(self)
        if self._first_step is not None and not self.presence.some_have_joined:
            batch = self.upkeep.held.batch if self.upkeep else lambda: None
            self._first_step.begin(self._collectives, self._weights_digest, batch)
        plan, memory = self.history.plan_now(), self.history.memory(layout)
        fingerprints = Fingerprints(secret, self.step, self.plan.config.fingerprint)
        if self.upkeep is not None and not self.presence.some_have_joined:
            self.upkeep.tell(control, self.step, fingerprints)
        return Step(
            self._collectives,
            plan,
            layout.buffers,
            copy,
            control,
            fingerprints,
            memory,
            update,
            is_complete,
        )

    def _finish(
        self, step: Step, finish: Callable[[], Outcome], again: Callable[[Step], Outcome]
    ) -> Outcome:
        """Return the outcome, and take it down, while the others wait for this rank."""
        with waits.waiting(self._what(), self.ranks, once=True):
            outcome = self._conclude(step, finish, again)
        self.ledger.note_waits(step.control.waited)
        waits.pace.note()
        return outcome

    def _what(self) -> str:
        """Return what all ranks wait in during an exchange; behind # is what need not be told."""
        return f"the exchange of step {self.step}#{self.name}"

    def _conclude(
        self, step: Step, finish: Callable[[], Outcome], again: Callable[[Step], Outcome]
    ) -> Outcome:
        """Return the outcome, and take it down; a first one is checked, or explained, before."""
        layout, first = self._layout, self._first_step
        outcome = self._attempt(step, finish)
        self.tally.exchanges += 1
        if isinstance(outcome, NoMajority) and first and first.explain(outcome, step.copy, layout):
            return self._leave_out(outcome, step)
        found = self._look(step, outcome.verdict or Verdict(()))
        if (better := self._rescue(step, outcome.verdict, found)) is not None:
            step = better
            outcome = self._attempt(step, lambda: replace(again(step), is_repeated=True))
        if isinstance(outcome, NoMajority):
            return self._skip(outcome, step, found)
        if first is not None and first.check(outcome, step.copy, layout):
            self._first_step = None
        digest = outcome.digest
        if digest is None:
            digest = step.fingerprints.of(outcome.update, [(0, layout.words)])[0]
        self._digest = digest
        if named := _named(step.control):
            outcome = replace(outcome, named={**outcome.named, **named})
        return self.history.record(outcome, layout, found)

    def _attempt(self, step: Step, finish: Callable[[], Outcome]) -> Outcome | NoMajority:
        """Return the outcome of an exchange, or why there is none."""
        try:
            return self._together(step, finish)
        except NoMajority as error:
            return error

    def _rescue(self, step: Step, verdict: Verdict | None, found: Findings) -> Step | None:
        """Return what this rank brings when the exchange is done again; None: it is not."""
        if self.upkeep is None or verdict is None:
            return None
        copy = self.upkeep.rescue(step.copy, step.fingerprints, verdict, found)
        return None if copy is None else replace(step, copy=copy, is_complete=True)

    def _look(self, step: Step, verdict: Verdict) -> Findings:
        """Return what was found of what ranks hold alike, if there was a reason to look."""
        if self.upkeep is None or self.presence.some_have_joined:
            return NOTHING_FOUND
        return self.upkeep.look(step.control, self.step, step.fingerprints, verdict)

    def _together(self, step: Step, finish: Callable[[], Outcome]) -> Outcome:
        """Return the outcome, also if ranks have joined; note who wants to stop."""
        began = time.monotonic()
        try:
            return finish()
        except RanksJoined:
            self.presence.some_have_joined = True
            if step.control.leaves:
                raise
            if self._first_step is not None:
                self._first_step.put_off()
            step.control.joined.clear()
            return joined.exchange(step)
        finally:
            self.presence.stopping |= step.control.stopping
            self._waited = time.monotonic() - began

    def prepare(self) -> None:
        """Digest what ranks hold alike for the next exchange, in which nothing can be read."""
        if self.upkeep is not None and self._secret and not self.presence.some_have_joined:
            self.upkeep.prepare(self.step, self._fingerprints())

    def scrub(self) -> None:
        """Compare what ranks hold alike, and heal it, between two exchanges; all come here."""
        if self.upkeep is None or self._secret is None or self.presence.some_have_joined:
            return
        self.upkeep.scrub(self.step, self._fingerprints())

    def _fingerprints(self) -> Fingerprints:
        """Return those of the next exchange, when ranks have a secret."""
        return Fingerprints(self._secret or b"", self.step, self.plan.config.fingerprint)

    def leave(self) -> None:
        """Tell the others, in their next exchange, that this rank has no more data.

        Raises:
            ExchangeTimeout: when they do not come to it.
        """
        if not self.has_begun or self.presence.some_have_joined:
            return
        nothing = namespace(self._none).empty((self._layout.words,), self._none, "int64")
        name = self._exchange_name(self._layout)
        step = self._begin_step(nothing, self._layout, nothing, is_complete=False)
        step.control.leaves = True
        exchange = partial(ALL_EXCHANGES[name].exchange, step)
        if len(parts := self.parts(self._layout)) > 1:
            exchange = partial(Sharded(step, parts).finish, lambda: None)
        with suppress(RanksJoined), waits.waiting(self._what(), self.ranks, once=True):
            self._together(step, exchange)

    def rejoin(self, step: int) -> None:
        """Go on with the ranks that had joined, all in this step."""
        self.presence.some_have_joined = False
        if self.upkeep is not None:
            self.upkeep.begin_anew()
        self.history.begin_anew(step)
        self._digest = np.zeros(WORDS, dtype=np.int64)
        self._secret = None
        self._steps_told = self.tally.steps or 0

    def _introduce(self, control: Control) -> bytes:
        """Agree on a secret, if there is none; while ranks have joined, on one for this step."""
        if self._secret is None and self.presence.some_have_joined:
            return joined.agree_on_secret(self._collectives)
        if self._secret is None:
            try:
                with waits.waiting(self._what(), self.ranks, once=True):
                    self._secret = control.introduce()
            except RanksJoined:
                return joined.agree_on_secret(self._collectives)
        return self._secret

    def _leave_out(self, failure: NoMajority, step: Step) -> Outcome:
        """Return the outcome of a step without an update, which is no fault of any rank."""
        self._digest = np.zeros(WORDS, dtype=np.int64)
        self.history.leave_out()
        step.update[:] = 0
        failed = failure if self._skips else None
        return Outcome(step.update, Verdict(()), (), failure=failed)

    def _skip(self, failure: NoMajority, step: Step, findings: Findings) -> Outcome:
        """Return the outcome of a step without an update, if it is to be skipped."""
        self._digest = np.zeros(WORDS, dtype=np.int64)
        most = self.plan.config.max_skipped_steps if self._skips else 0
        self.history.skip(failure, most, _named(step.control), findings)
        step.update[:] = 0
        verdict = failure.verdict or Verdict(())
        return Outcome(step.update, verdict, failure.non_finite, failure=failure)

    def _exchange_name(self, layout: Layout) -> str:
        """Choose the exchange: small gradients without witnesses take one round."""
        config, copies = self.plan.config, WORD * layout.words * self._collectives.size
        if config.tolerance:
            return "tolerant"
        one_round = copies <= config.one_round_bytes and not config.witnesses
        small = config.exchange == "sharded" and one_round
        return "gathered" if small else config.exchange


def _named(control: Control) -> dict[str, tuple[int, ...]]:
    """Return the ranks that are named for what their records say, by kind."""
    found = {DIVERGENCE: control.diverged, OUT_OF_STEP: control.out_of_step}
    return {kind: ranks for kind, ranks in found.items() if ranks}

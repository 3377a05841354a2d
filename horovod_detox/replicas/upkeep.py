"""When ranks compare what they hold alike: when it is due, and when something is wrong."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from horovod_detox.arrays.namespaces import Words
from horovod_detox.arrays.nh import WORDS
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.control import Control
from horovod_detox.exchange.sharing import share
from horovod_detox.replicas.replicas import Held, Replicas
from horovod_detox.replicas.rescue import speakers, taken_over
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.majority import Verdict
from horovod_detox.vote.report import NOTHING_FOUND, STATE, Cause, Findings

NOTHING = np.zeros(2 * WORDS, np.int64)
"""What a rank tells of what it holds when it tells nothing."""
FIRST = 1
"""The number of the first exchange in which pieces are compared: weights may differ in number 0."""


class Upkeep:
    """Keeps equal what ranks hold alike, from exchange to exchange of an engine.

    Digests travel with the control record when that is due. From these, and from the verdict, all
    ranks see alike whether to compare piece by piece, which takes rounds of their own.

    Args:
        replicas: what this rank holds.
        collectives: of the ranks.
        ledger: is told what is found between two exchanges.
        every: after so many exchanges digests travel; 0: only in the first that count.
    """

    def __init__(
        self, replicas: Replicas, collectives: Collectives, ledger: Ledger, every: int
    ) -> None:
        self._replicas, self._collectives = replicas, collectives
        self._ledger, self._every = ledger, every
        self._latest: int | None = None
        self._accused: frozenset[int] = frozenset()
        self._to_explain: dict[int, int] | None = None
        self._prepared: tuple[int, tuple[np.ndarray, bool]] = -1, (NOTHING, False)
        self._files = replicas.held.files.unconfirmed()

    @property
    def held(self) -> Held:
        """Return what this rank holds."""
        return self._replicas.held

    def tell(self, control: Control, step: int, fingerprints: Fingerprints) -> None:
        """Tell the others, with the record of an exchange, of what this rank holds, if it is due.

        Args:
            control: has the record.
            step: the number of the exchange.
            fingerprints: of the exchange.
        """
        if self._replicas.held.is_readable():
            self.prepare(step, fingerprints)
        if self._files:
            control.tell_of_files()
        self.held.files.begin()
        of_step, told = self._prepared
        if of_step == step:
            self._latest = step
            control.tell_of_replicas(*told)

    def prepare(self, step: int, fingerprints: Fingerprints) -> None:
        """Digest for an exchange what is to be told in it, if it is due, as far as it is not."""
        if self._is_due(step) and self._prepared[0] != step:
            self._prepared = step, self._replicas.told(self._collectives.rank, fingerprints)

    def _is_due(self, step: int) -> bool:
        if self._latest is None:
            return step >= FIRST
        is_postponed = step == self._latest
        return is_postponed or 0 < self._every <= step - self._latest

    def look(
        self, control: Control, step: int, fingerprints: Fingerprints, verdict: Verdict
    ) -> Findings:
        """Compare what ranks hold alike, and heal it, if there is a reason to.

        In a traced function nothing can be written; then it is done when that is over, and the
        ledger is told.

        Args:
            control, step, fingerprints: of an exchange, in which all ranks have been heard.
            verdict: what it came to.
        """
        if step < FIRST:  # who is at fault from the start is explained in the next exchange
            return NOTHING_FOUND
        new = self._accused_anew(verdict, {*control.diverged, *control.out_of_step})
        # What single ranks tell when it is not due is nobody's business.
        is_told = 2 * control.replicas.any(axis=1).sum() > len(control.replicas)
        is_odd = is_told and (control.has_unknown or self._replicas.differ(control.replicas))
        if not (new or is_odd or control.has_files):
            return NOTHING_FOUND
        dissenters = dict.fromkeys(sorted(new & {*verdict.dissenters}), step)
        if self._replicas.held.is_readable():
            return self._compare(fingerprints, dissenters)
        if dissenters:
            self._replicas.held.ask_for_batch()
        self._to_explain = {**dissenters, **(self._to_explain or {})}
        self._replicas.held.when_readable(lambda: self._look_later(fingerprints))
        return NOTHING_FOUND

    def rescue(
        self, copy: Words, fingerprints: Fingerprints, verdict: Verdict, found: Findings
    ) -> Words | None:
        """Return the copy to do an exchange again with, for groups that lost it by wrong states.

        Args:
            copy, fingerprints: of this rank in that exchange.
            verdict: what it came to.
            found: what `look` then found.

        Returns:
            `(w,)` words; None, on all ranks: nothing would be better.
        """
        groups = self._replicas.groups
        sound = speakers(groups, verdict.abstentions, found.odd)
        if not sound:
            return None
        return taken_over(self._collectives, groups, copy, sound, fingerprints)

    def scrub(self, step: int, fingerprints: Fingerprints) -> None:
        """Compare what ranks hold alike, and heal it; all ranks come here together."""
        self._ledger.note(step, self._compare(fingerprints))
        self.held.files.confirm()

    def _look_later(self, fingerprints: Fingerprints) -> None:
        explained, self._to_explain = self._to_explain, None
        if explained is None:
            return
        found = self._compare(fingerprints, explained)
        self._ledger.explain(explained, found.causes)
        step = max(explained.values(), default=self._latest or 0)
        self._ledger.note(step, Findings({}, found.drifts, found.undecided))

    def _compare(self, fingerprints: Fingerprints, dissenters: Collection[int] = ()) -> Findings:
        """Compare and heal; take the names from files that hold what has been healed."""
        mine = self._files.take()
        found = self._replicas.compare(self._collectives, fingerprints, dissenters)
        explained = {**found.causes, **found.drifts}
        odd = {rank for rank, cause in explained.items() if cause.kind == STATE}
        if not odd:
            return found
        aside = [file.set_aside() for file in mine] if self._collectives.rank in odd else []
        names = share(self._collectives, "replicas.files", [name for name in aside if name])
        return replace(found, causes=_with(names, found.causes), drifts=_with(names, found.drifts))

    def begin_anew(self) -> None:
        """Forget who is accused, as ranks that were away do not know it."""
        self._accused = frozenset()

    def _accused_anew(self, verdict: Verdict, named: Collection[int] = ()) -> frozenset[int]:
        """Return the ranks at fault that were not in the step before.

        They lost a vote, or their group did, or are named for their records.
        """
        accused = {*verdict.dissenters, *named}
        for group in verdict.abstentions:
            accused.update(self._replicas.groups.members[group])
        new, self._accused = frozenset(accused) - self._accused, frozenset(accused)
        return new


def _with(files: Sequence[Sequence[str]], causes: Mapping[int, Cause]) -> dict[int, Cause]:
    """Return causes with the files that ranks have written, of those that are known to be wrong."""
    return {rank: replace(cause, files=tuple(files[rank])) for rank, cause in causes.items()}

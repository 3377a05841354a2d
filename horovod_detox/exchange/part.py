"""One part of a copy on its way through the exchange `sharded`, whose stages are its methods.

A part that was sent (stage 1) becomes one whose votes are known (stages 2 to 5).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from horovod_detox.aggregators import Aggregator
from horovod_detox.arrays.namespaces import Words, namespace
from horovod_detox.arrays.nh import WORDS
from horovod_detox.exchange.aggregation import Columns, examine, non_finite_votes
from horovod_detox.exchange.collectives import NOTHING, Handle, Message
from horovod_detox.exchange.cut import Bounds, Part
from horovod_detox.exchange.evidence import Accusation, Accused, Deaf, Findings, Silenced, show
from horovod_detox.exchange.momentum import Means
from horovod_detox.exchange.owners import (
    aggregate_slices,
    apart,
    share_slices,
    with_accusations,
)
from horovod_detox.exchange.senders import choose_senders, repairs
from horovod_detox.exchange.step import NoMajority, Step, rule_for
from horovod_detox.exchange.witnesses import confirm
from horovod_detox.vote.groups import slice_holders
from horovod_detox.vote.majority import judge

Kept = tuple[int, ...]
"""The groups whose votes are in the update, ascending."""
Repairs = dict[tuple[int, int], int]
"""Who sends once more, by group and slice."""


class _Slices:
    """The p slices of a part, and how they travel.

    Attributes:
        step: what this rank brings to the exchange.
        part: the words.
        holders: `(1 + w, p)`: who computes each slice, its owner first.
        held: the slice that this rank owns, and those that it witnesses.
    """

    def __init__(self, step: Step, part: Part) -> None:
        self.step, self.part = step, part
        self.holders = slice_holders(step.plan.groups, step.plan.witnesses)
        self.held: list[int] = np.argmax(self.holders == step.collectives.rank, axis=1).tolist()

    def of_copy(self, s: int) -> Words:
        """Return a slice of this rank's copy."""
        return self.step.copy[slice(*self.part.slices[s])]

    def send(self, name: str, slices: Collection[int], facts: np.ndarray = NOTHING) -> list[Handle]:
        """Send some slices to their owners and witnesses; with the first, facts to all."""
        handles, step = [], self.step
        for j, receivers in enumerate(self.holders.tolist()):
            parts = [step.copy[:0]] * len(receivers)
            for s in slices:
                parts[receivers[s]] = self.of_copy(s)
            spare = None if j else step.update[self.part.start : self.part.stop]
            told = NOTHING if j else facts
            full_name = f"{name}{self.part.name}" + (f".witness.{j}" if j else "")
            handles.append(step.collectives.alltoall(full_name, told, parts, spare))
        return handles


class SentPart:
    """A part whose fingerprints and slices are on their way, or the word that they are not yet."""

    def __init__(self, step: Step, part: Part, findings: Findings, is_complete: bool) -> None:
        groups, rank = step.plan.groups, step.collectives.rank
        self._slices, self._findings = _Slices(step, part), findings
        distrusted = step.memory.distrusted | findings.senders
        self._senders = choose_senders(groups, step.collectives.size, distrusted)
        mine, seen = [], NOTHING
        if is_complete:
            mine = np.flatnonzero(self._senders[groups.of(rank)] == rank).tolist()
            seen = examine(step.fingerprints, step.buffers, step.copy, part.slices).ravel()
        facts = step.control.tell(seen, is_complete)
        self._received = self._slices.send("slices", mine, facts)

    def is_received(self) -> bool:
        """Return whether `vote` would not wait."""
        return all(handle.is_done() for handle in self._received)

    def vote(self) -> "VotedPart | None":
        """Wait for the other ranks, and vote; None: some have not sent it yet.

        Raises:
            RanksDisagree: on every rank, when one is about to do something else.
        """
        received: list[Sequence[Message]] = [handle.wait() for handle in self._received]
        p, control = len(received[0]), self._slices.step.control
        facts = control.hear([message.facts for message in received[0]])
        if any(len(each) == 0 for each in facts):
            return None
        table = np.stack(facts).reshape(p, p, -1)
        words = [[message.words for message in messages] for messages in received]
        return VotedPart(self._slices, self._senders, table, words, self._findings)


class VotedPart:
    """A part whose votes are known.

    Attributes:
        verdict, non_finite: the votes on this part.
        means: the new ones, of the slices that this rank holds.
        accusations: those of this rank.
        is_new: whether the update of this part has come since somebody last looked.
    """

    def __init__(
        self,
        slices: _Slices,
        senders: np.ndarray,
        table: np.ndarray,
        received: Sequence[Sequence[Words]],
        findings: Findings,
    ) -> None:
        self._findings = findings
        self._slices, self._senders, self._step = slices, senders, slices.step
        self._table = table
        self.verdict = judge(self._step.plan.groups, table)
        self.non_finite = non_finite_votes(self.verdict, table)
        self.means: Means = {}
        self.accusations: list[Accusation] = []
        self._of_all: set[Accusation] = set()
        self._shown: dict[tuple[int, int], Words] = {}  # by slice and sender
        self.is_new = False
        # Of each held slice, the votes by group; none where they have to be sent again.
        self._votes: list[dict[int, Words]] = [
            {group: words[senders[group, s]] for group in self.verdict.winners}
            for s, words in zip(slices.held, received, strict=True)
        ]
        self._columns: dict[Kept, list[Columns]] = {}
        self._results: Sequence[Words] = ()
        self._kept: Kept | None = None  # whose votes are in the update that is shared
        self._shared: Handle | None = None

    def go_ahead(self) -> None:
        """Check, aggregate and share at once, if all votes are good.

        Only another part could change that. A rule that needs the Gram matrix gets that of this.
        """
        everyone = tuple(self.verdict.winners)
        try:
            if self.verdict.abstentions or self.non_finite or self.to_repair(everyone):
                return
        except Silenced:
            return
        rule = rule_for(self._step.plan, self.verdict, ())
        if rule is not None and rule.uses_gram:
            for columns in self.columns(everyone):
                _ = columns.grams
        else:
            aggregate([self], rule, everyone)
            # To keep them would take k / p of the gradient, for what hardly ever happens.
            self._votes, self._columns = [{} for _ in self._votes], {}

    def is_shared(self, kept: Kept) -> bool:
        """Return whether the update of this part is that of these groups' votes, and under way."""
        return self._kept == kept

    def is_received(self) -> bool:
        """Return whether the update of this part is under way, and `receive` would not wait.

        With witnesses it must still be confirmed.
        """
        if self._shared is None or self._step.plan.witnesses:
            return False
        return self._shared.is_done()

    def to_repair(self, kept: Kept) -> Repairs:
        """Return who sends next what the present senders do not send as the majority has it.

        Votes that were let go are sent again.

        Raises:
            Silenced: on every rank, when nobody of a group can.
        """
        p, groups = len(self._table), self._step.plan.groups
        let_go = [group for group in kept if group not in self._votes[0]]
        again = {(group, s): int(self._senders[group, s]) for group in let_go for s in range(p)}
        winners = {group: self.verdict.winners[group] for group in kept}
        return again | repairs(groups, winners, self._table, self._senders, self._findings.senders)

    def send_repairs(self, senders: Repairs) -> list[Handle]:
        """Let what was lost be on its way."""
        rank = self._step.collectives.rank
        asked = [s for (_, s), sender in senders.items() if sender == rank]
        return self._slices.send("repairs", asked) if senders else []

    def receive_repairs(self, senders: Repairs, handles: Sequence[Handle]) -> None:
        """Wait for it, and use it from now on."""
        held = self._slices.held
        received = [handle.wait() for handle in handles]
        for (group, s), sender in senders.items():
            self._senders[group, s] = sender
            if s in held:
                self._votes[held.index(s)][group] = received[held.index(s)][sender].words
        for (s, sender), words in self._shown.items():
            group = self._step.plan.groups.of(sender)
            if self._senders[group, s] == sender:
                self._votes[held.index(s)][group] = words

    def columns(self, kept: Kept) -> list[Columns]:
        """Check what was received of the kept groups; return it, for each slice that is held."""
        if kept not in self._columns:
            self._check(kept)
            self._columns = {kept: [self._of_slice(*each) for each in self._with_votes(kept)]}
        return self._columns[kept]

    def rooms(self) -> list[Words]:
        """Return what to write the slices to that this rank holds, its own first."""
        update, slices = self._step.update, self._slices
        places = [update[slice(*slices.part.slices[s])] for s in slices.held]
        return [places[0], *(namespace(place).copy(place) for place in places[1:])]

    def share(self, kept: Kept, results: Sequence[Words], means: Means) -> None:
        """Let this rank's slice be on its way to all; whom it accuses and its digests beside it."""
        slices, self._results, self._kept = self._slices, results, kept
        self.means = means
        digests = NOTHING
        if self._step.plan.witnesses:
            starts = [slices.part.slices[s][0] for s in slices.held]
            digests = self._step.fingerprints.of_each(results, starts).ravel()
        facts = with_accusations(self.accusations, digests)
        self._shared = share_slices(self._step.collectives, slices.part, self._step.update, facts)

    def receive(self) -> None:
        """Wait for the slices of the others, if they are under way.

        If somebody was accused, others must send, and this part of the update be computed again.
        """
        if self._shared is None:
            return
        found, facts = apart(self._shared.wait())
        self._shared = None
        if found:
            self.accuse(found)
            return
        if self._step.plan.witnesses:
            self._findings.wrong |= confirm(
                self._step,
                self._slices.part.slices,
                self._results,
                np.stack(facts).reshape(len(facts), -1, WORDS),
                self._slices.holders,
            )
        self.is_new = True

    def accuse(self, found: Collection[Accusation]) -> None:
        """Note who was accused by any rank; what was computed does not count."""
        self._of_all |= {each for each in found if each.part == self._slices.part.number}
        self._kept, self._columns = None, {}

    def take_accusations(self) -> set[Accusation]:
        """Return the accusations of all ranks since this was last asked."""
        accusations, self._of_all = self._of_all, set()
        return accusations

    def told(self, accusation: Accusation) -> tuple[Bounds, np.ndarray]:
        """Return the words of an accused slice, and its fingerprint."""
        bounds = self._slices.part.slices[accusation.slice]
        return bounds, self._table[accusation.sender, accusation.slice, :WORDS]

    def believe(self, accusation: Accusation, words: Words) -> None:
        """Use what the accused has shown, in the place of what this rank received from it."""
        self._shown[accusation.slice, accusation.sender] = words

    def owns(self, rank: int) -> bool:
        """Return whether a rank owns anything of this part."""
        start, stop = self._slices.part.slices[rank]
        return start < stop

    def digest(self) -> np.ndarray:
        """Digest the update of this part: `(2,)` of int64."""
        self.is_new = False
        part = self._slices.part
        return self._step.fingerprints.of(self._step.update, [(part.start, part.stop)])[0]

    def _with_votes(self, kept: Kept) -> Iterable[tuple[int, dict[int, Words]]]:
        """Yield the slices that are held, and the votes of the kept groups on each."""
        for s, votes in zip(self._slices.held, self._votes, strict=True):
            yield s, {group: votes[group] for group in kept}

    def _check(self, kept: Kept) -> None:
        """Accuse the senders whose slice is not what they had fingerprinted.

        A witness that does not receive well is not listened to.
        """
        slices, self.accusations = self._slices, []
        rank, number = self._step.collectives.rank, slices.part.number
        is_deaf = rank in self._step.memory.unreliable | self._findings.receivers
        is_heard = self.owns(rank) or not is_deaf
        for (s, votes), held in zip(self._with_votes(kept), self._votes, strict=True):
            senders = self._senders[list(kept), s]
            told = self._table[senders, s, :WORDS]
            starts = [slices.part.slices[s][0]] * len(votes)
            received = self._step.fingerprints.of_each(list(votes.values()), starts)
            for i in np.flatnonzero((received != told).any(axis=1)).tolist():
                if is_heard:
                    self.accusations.append(Accusation(number, int(senders[i]), s, rank))
                # To go on with; the result will not count.
                held[kept[i]] = slices.of_copy(s)

    def _of_slice(self, s: int, votes: Mapping[int, Words]) -> Columns:
        """Return the votes on a slice as columns."""
        part = self._slices.part
        mine = self._step.cut(*part.slices[s])
        return Columns(mine.buffers, votes, mine.memory, part.blocks_within(s))


def aggregate(parts: Sequence[VotedPart], rule: Aggregator | None, kept: Kept) -> None:
    """Compute the slices that this rank holds of some parts; let its own be on their way.

    Args:
        parts: all of them, if the rule needs the Gram matrix.
        rule: fitted to the votes that are kept; None: the update is NaN.
        kept: the groups whose votes count.
    """
    step, holders = parts[0]._step, parts[0]._slices.holders
    columns = [column for part in parts for column in part.columns(kept)]
    accusations = [each for part in parts for each in part.accusations]
    rooms = [part.rooms() for part in parts]
    results = [room for of_part in rooms for room in of_part]
    try:
        means, wrong = aggregate_slices(
            step.collectives,
            rule,
            [part._slices.part for part in parts],
            columns,
            results,
            holders,
            accusations,
        )
    except Accused as error:
        for part in parts:
            part.accuse(error.found)
        return
    parts[0]._findings.wrong |= wrong
    for part, of_part in zip(parts, rooms, strict=True):
        part.share(kept, of_part, means)


def repair(parts: Sequence[VotedPart], kept: Kept) -> None:
    """Let others send what the present senders do not send as the majority has it, of all parts."""
    judge_accusations(parts)
    senders = [part.to_repair(kept) for part in parts]
    under_way = [part.send_repairs(each) for part, each in zip(parts, senders, strict=True)]
    for part, each, handles in zip(parts, senders, under_way, strict=True):
        part.receive_repairs(each, handles)


def judge_accusations(parts: Sequence[VotedPart]) -> None:
    """Find out who is to blame where slices arrived otherwise than they were fingerprinted.

    Raises:
        Deaf: on every rank, when owners do not receive what others send.
    """
    accusations = {each for part in parts for each in part.take_accusations()}
    if not accusations:
        return
    of = {part._slices.part.number: part for part in parts}
    step, findings = parts[0]._step, parts[0]._findings
    shown = show(step, accusations, lambda each: of[each.part].told(each), findings)
    if any(part.owns(rank) for part in parts for rank in findings.receivers):
        raise Deaf
    for accusation, words in shown.items():
        if accusation.sender not in findings.senders:
            of[accusation.part].believe(accusation, words)


def conclude(parts: Sequence[VotedPart], rule: Aggregator | None, kept: Kept) -> None:
    """See to it that the update is that of the kept groups; aggregate anew until nobody is accused.

    Args:
        parts: all of them.
        rule, kept: as of `aggregate`.
    """
    needs_all = rule is not None and rule.uses_gram
    for _ in range(2 * parts[0]._step.collectives.size + 1):
        for part in parts:
            part.receive()
        missing = [part for part in parts if not part.is_shared(kept)]
        if not missing:
            return
        computed = [parts] if needs_all else [[part] for part in missing]
        repair(parts if needs_all else missing, kept)
        for together in computed:
            aggregate(together, rule, kept)
    raise NoMajority(
        "no update in this step: what arrives does not match its fingerprint, again and again, "
        "whoever sends it. Check the network and the memory of the hosts"
    )

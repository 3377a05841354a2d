"""One part of a copy on its way through the exchange `sharded`, whose stages are its methods.

A part that was sent (stage 1) becomes one whose votes are known (stages 2 to 5).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from horovod_detox.aggregators import Aggregator
from horovod_detox.arrays.namespaces import Words, namespace
from horovod_detox.exchange.aggregation import Columns, examine, non_finite_votes
from horovod_detox.exchange.collectives import Handle
from horovod_detox.exchange.momentum import Means
from horovod_detox.exchange.owners import aggregate_slices, broadcast_slices
from horovod_detox.exchange.step import NoMajority, Step, rule_for
from horovod_detox.exchange.witnesses import confirm
from horovod_detox.vote.fingerprint import WORDS, fingerprints, slice_bounds
from horovod_detox.vote.groups import Groups, slice_holders
from horovod_detox.vote.majority import judge

Kept = tuple[int, ...]
"""The groups whose votes are in the update, ascending."""


class _Slices:
    """The p slices of a part, and how they travel.

    Attributes:
        step: what this rank brings to the exchange of this part.
        name: tells the collectives of this part from those of others.
        bounds: the words of each slice, `(start, stop)`.
        holders: `(1 + w, p)`: who computes each slice, its owner first.
        held: the slice that this rank owns, and those that it witnesses.
    """

    def __init__(self, step: Step, name: str) -> None:
        self.step, self.name = step, name
        self.bounds = slice_bounds(len(step.copy), step.collectives.size)
        self.holders = slice_holders(step.plan.groups, step.plan.witnesses)
        self.held: list[int] = np.argmax(self.holders == step.collectives.rank, axis=1).tolist()

    def of_copy(self, s: int) -> Words:
        """Return a slice of this rank's copy."""
        return self.step.copy[slice(*self.bounds[s])]

    def send(self, name: str, slices: Collection[int]) -> list[Handle]:
        """Send some slices to their owners, and to their witnesses."""
        handles = []
        for j, receivers in enumerate(self.holders.tolist()):
            parts = [self.step.copy[:0]] * len(self.bounds)
            for s in slices:
                parts[receivers[s]] = self.of_copy(s)
            spare = None if j else self.step.update
            full_name = f"{name}{self.name}" + (f".witness.{j}" if j else "")
            handles.append(self.step.collectives.alltoall(full_name, parts, spare))
        return handles


class SentPart:
    """A part whose fingerprints and slices are on their way."""

    def __init__(self, step: Step, name: str) -> None:
        groups, collectives = step.plan.groups, step.collectives
        self._slices = _Slices(step, name)
        self._senders = _senders(groups, collectives.size, step.memory.distrusted)
        facts = examine(step.buffers, step.copy, self._slices.bounds).ravel()
        mine = self._senders[groups.of(collectives.rank)] == collectives.rank
        self._facts = collectives.allgather(f"facts{name}", facts)
        self._received = self._slices.send("slices", np.flatnonzero(mine).tolist())

    def is_received(self) -> bool:
        """Return whether `vote` would not wait."""
        handles = [self._slices.step.agreement, self._facts, *self._received]
        return all(handle.is_done() for handle in handles)

    def vote(self) -> "VotedPart":
        """Wait for the other ranks, and vote."""
        self._slices.step.agreement.wait()
        facts = self._facts.wait()
        received = [handle.wait() for handle in self._received]
        part = VotedPart(self._slices, self._senders, facts, received)
        part.begin_ahead()
        return part


@dataclass
class _Result:
    """The slices that this rank computed from the votes of some groups.

    Attributes:
        kept: these groups.
        words: of each held slice, its own first, a part of the update.
        means: new ones, with momentum.
        broadcasts: of all owners' slices, under way.
    """

    kept: Kept
    words: Sequence[Words]
    means: Means
    broadcasts: list[Handle]


class VotedPart:
    """A part whose votes are known.

    Attributes:
        verdict, non_finite: the votes on this part.
        accused: (rank, slice) of those that did not send what they had fingerprinted.
        wrong: the ranks that computed otherwise than most who computed the same.
        means: the new ones, once the part is concluded.
    """

    def __init__(
        self,
        slices: _Slices,
        senders: np.ndarray,
        facts: np.ndarray,
        received: Sequence[Sequence[Words]],
    ) -> None:
        self._slices, self._senders, self._step = slices, senders, slices.step
        p, groups = len(slices.bounds), self._step.plan.groups
        self._table = facts.reshape(p, p, -1)
        self.verdict = judge(groups, self._table)
        self.non_finite = non_finite_votes(self.verdict, self._table)
        self.accused: set[tuple[int, int]] = set()
        self.wrong: set[int] = set()
        self.means: Means = {}
        # Of each held slice, the votes by group.
        self._votes = [
            {group: parts[senders[group, s]] for group in self.verdict.winners}
            for s, parts in zip(slices.held, received, strict=True)
        ]
        self._ahead: tuple[Handle, _Result] | None = None

    def begin_ahead(self) -> None:
        """Check, aggregate and broadcast at once, if all votes are good.

        Only another part could change that. With witnesses, accusations come first.
        """
        everyone = tuple(self.verdict.winners)
        is_good = not (self.verdict.abstentions or self.non_finite or self._replacements(everyone))
        if is_good and not self._step.plan.witnesses:
            accusations = self._check(everyone)
            rule = rule_for(self._step.plan, self.verdict, ())
            self._ahead = accusations, self._aggregate(rule, everyone)

    def conclude(self, rule: Aggregator | None, kept: Kept) -> None:
        """See to it that the update is that of the kept groups."""
        if self._step.plan.witnesses:
            result = self._conclude_with_witnesses(rule, kept)
        else:
            result = self._conclude_alone(rule, kept)
        self.means = result.means

    def _conclude_alone(self, rule: Aggregator | None, kept: Kept) -> _Result:
        """Aggregate what was received and look at the accusations beside the broadcasts."""
        while True:
            if self._ahead is None:
                self._repair(kept)
                self._ahead = self._check(kept), self._aggregate(rule, kept)
            accusations, result = self._ahead
            if result.kept != kept:
                result = self._aggregate(rule, kept)
            self._ahead = None
            is_good = not self._accuse(accusations)
            _wait(result.broadcasts)
            if is_good:
                return result

    def _conclude_with_witnesses(self, rule: Aggregator | None, kept: Kept) -> _Result:
        """Look at the accusations first: witnesses must compute from what the owner received."""
        self._repair(kept)
        while self._accuse(self._check(kept)):
            self._repair(kept)
        result, slices = self._aggregate(rule, kept), self._slices
        _wait(result.broadcasts)
        self.wrong |= confirm(
            self._step.collectives, self._step.update, slices.bounds, result.words, slices.holders
        )
        return result

    def receive_update(self) -> None:
        """Wait for the slices that the other owners broadcast."""
        if self._ahead is not None:
            _wait(self._ahead[1].broadcasts)

    def _replacements(self, kept: Kept) -> dict[tuple[int, int], int]:
        """Return who sends next, by (group, slice), where a sender lost or was accused."""
        winners = {group: self.verdict.winners[group] for group in kept}
        groups = self._step.plan.groups
        return _repairs(groups, winners, self._table, self._senders, self.accused)

    def _repair(self, kept: Kept) -> None:
        """Let others send what the present senders do not send as the majority has it."""
        repairs, slices = self._replacements(kept), self._slices
        if not repairs:
            return
        rank = self._step.collectives.rank
        asked = [s for (_, s), sender in repairs.items() if sender == rank]
        received = [handle.wait() for handle in slices.send("repairs", asked)]
        for (group, s), sender in repairs.items():
            self._senders[group, s] = sender
            if s in slices.held:
                j = slices.held.index(s)
                self._votes[j][group] = received[j][sender]

    def _check(self, kept: Kept) -> Handle:
        """Accuse the senders whose slice was not what they had fingerprinted, to all ranks."""
        slices, liars = self._slices, []
        for s, votes in zip(slices.held, self._votes, strict=True):
            senders = self._senders[list(kept), s]
            told = self._table[senders, s, :WORDS]
            is_as_told = (fingerprints([votes[group] for group in kept]) == told).all(axis=1)
            for i in np.flatnonzero(~is_as_told).tolist():
                liars.append(int(senders[i]) * len(slices.bounds) + s)
                # To go on with; the result will not count.
                votes[kept[i]] = slices.of_copy(s)
        words = np.array(liars, np.int64)
        return self._step.collectives.allgather(f"accusations{slices.name}", words)

    def _accuse(self, accusations: Handle) -> bool:
        """Note who was accused; return whether somebody was, so that others must send."""
        found = {divmod(each, len(self._slices.bounds)) for each in accusations.wait().tolist()}
        self.accused |= found
        return bool(found)

    def _aggregate(self, rule: Aggregator | None, kept: Kept) -> _Result:
        """Compute the slices that this rank holds; let its own be on its way to all, in place."""
        self.receive_update()  # of a former attempt
        step, slices = self._step, self._slices
        columns, results = [], []
        for j, (s, votes) in enumerate(zip(slices.held, self._votes, strict=True)):
            start, stop = slices.bounds[s]
            mine = step.cut(start, stop)
            results.append(namespace(mine.update).copy(mine.update) if j else mine.update)
            of_kept = {group: votes[group] for group in kept}
            columns.append(Columns(mine.buffers, of_kept, mine.memory, [(0, stop - start)]))
        means, wrong = aggregate_slices(step.collectives, rule, columns, results, slices.holders)
        self.wrong |= wrong
        broadcasts = broadcast_slices(
            step.collectives, step.update, slices.bounds, f"update{slices.name}"
        )
        return _Result(kept, results, means, broadcasts)


def _wait(handles: list[Handle]) -> None:
    """Wait for handles, each once: Horovod forgets those that were waited for."""
    while handles:
        handles.pop(0).wait()


def _senders(groups: Groups, slices: int, distrusted: Collection[int]) -> np.ndarray:
    """Choose who sends each slice: its owner if it can, else members in turn; `(k, slices)`."""
    senders = np.empty((len(groups), slices), dtype=np.int64)
    for group, members in enumerate(groups.members):
        trusted = np.array([rank for rank in members if rank not in distrusted] or members)
        others = np.setdiff1d(np.arange(slices), trusted)
        senders[group, trusted] = trusted
        senders[group, others] = np.resize(trusted, len(others))
    return senders


def _repairs(
    groups: Groups,
    winners_by_group: Mapping[int, Sequence[int]],
    table: np.ndarray,
    senders: np.ndarray,
    accused: Collection[tuple[int, int]],
) -> dict[tuple[int, int], int]:
    """Return other senders, by (group, slice), where the present one lost or was accused."""
    repairs = {}
    slices = np.arange(table.shape[1])
    for group, winners in winners_by_group.items():
        won = table[list(winners), slices]  # (slices, 3)
        fits = (table[senders[group], slices] == won).all(axis=1)
        fits[[s for rank, s in accused if senders[group, s] == rank]] = False
        for s in np.flatnonzero(~fits).tolist():
            others = [
                rank
                for rank in groups.members[group]
                if (rank, s) not in accused and (table[rank, s] == won[s]).all()
            ]
            if not others:
                raise NoMajority(
                    f"no update in this step: no rank of group {group} sends slice {s} as it "
                    "fingerprinted it"
                )
            repairs[group, s] = others[0]
    return repairs

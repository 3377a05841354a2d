"""The exchange in which no rank receives a whole foreign gradient.

The copies are cut into p slices; rank s owns slice s.

1. Every rank fingerprints its slices. Allgather of all fingerprints; beside it, for each slice and
   each group, one sender sends that slice to its owner.
2. From the table of fingerprints every rank computes the same votes. Where a sender lost, a member
   of the majority sends that slice again.
3. Every owner checks what it received against the fingerprint and aggregates its columns; where a
   rule needs the Gram matrix, all ranks gather those of the slices and add them up.
4. Every owner broadcasts its slice of the update; beside it, owners accuse senders whose slice was
   not what they had fingerprinted. After an accusation, others send, and 3 and 4 are repeated.

With w witnesses, ranks of w other groups receive each slice, too, and do what its owner does: each
rank does 1 to 3 for the slice that it owns and those that it witnesses. Then

5. from the fingerprints of all results every rank learns which are those of most; a slice that
   arrived otherwise is broadcast again, by a witness, and its owner is named.

Parts of the copy may go through 1 to 4 one after another, while later ones are still computed. When
a later part shows that the vote of a group does not count, the earlier ones are aggregated again.

A rank receives `(1 + w) k / p + 1` times the gradient, that is `(1 + w) / r + 1`; allreduce: 2.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from horovod_detox.aggregators import Aggregator
from horovod_detox.arrays import namespace
from horovod_detox.config import Plan
from horovod_detox.exchange.aggregation import Columns, examine, non_finite_votes
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.outcome import Memory, NoMajority, Outcome, rule_for
from horovod_detox.exchange.owners import aggregate_slices, broadcast_slices
from horovod_detox.exchange.witnesses import confirm
from horovod_detox.fingerprint import WORDS, fingerprints, slice_bounds
from horovod_detox.groups import Groups, slice_holders
from horovod_detox.layout import Buffers, Layout
from horovod_detox.vote import Verdict, judge, merge


def exchange(
    collectives: Collectives,
    plan: Plan,
    layout: Layout,
    copy: Any,
    agreement: Handle,
    memory: Memory,
    update: Any,
) -> Outcome:
    """Turn this rank's copy into the update that all ranks share: an `outcome.Exchange`."""
    return Sharded(collectives, plan, layout, copy, agreement, memory, update).finish()


class Sharded:
    """An exchange under way: parts of the copy may be sent while others are not known yet.

    Args:
        collectives, plan, layout, copy, agreement, memory, update: as of an `outcome.Exchange`.
        parts: the words of each part, `(start, stop)`, one after another. Of several parts those
            that were sent are aggregated and shared before the others, so no rule may need more
            than the columns of a part.
    """

    def __init__(
        self,
        collectives: Collectives,
        plan: Plan,
        layout: Layout,
        copy: Any,
        agreement: Handle,
        memory: Memory,
        update: Any,
        parts: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self._plan, self._update = plan, update
        self._parts = [
            _Part(
                collectives,
                plan,
                layout.buffers.cut(start, stop),
                copy[start:stop],
                agreement,
                memory.cut(start, stop),
                update[start:stop],
                f".{i}" if i else "",
            )
            for i, (start, stop) in enumerate(parts or [(0, len(copy))])
        ]

    def send(self, part: int) -> None:
        """Let the fingerprints and slices of a part be on their way; its words are final."""
        self._parts[part].send()

    def advance(self) -> None:
        """Go on with the parts that were sent, without waiting for another rank."""
        for part in self._parts:
            if part.can_begin():
                part.begin()

    def finish(self) -> Outcome:
        """Send what was not sent, wait for the other ranks and return the outcome."""
        for part in self._parts:
            part.send()
        for part in self._parts:
            part.begin()
        for part in self._parts:
            part.receive_update()
        verdict = merge([part.verdict for part in self._parts])
        in_parts = {group for part in self._parts for group in part.non_finite}
        non_finite = tuple(group for group in verdict.winners if group in in_parts)
        rule = rule_for(self._plan, verdict, non_finite)
        kept = tuple(group for group in verdict.winners if group not in non_finite)
        wrong = set().union(*(part.finish(rule, kept) for part in self._parts))
        accused = {rank for part in self._parts for rank, _ in part.accused}
        verdict = _accuse(self._plan.groups, verdict, accused)
        return Outcome(self._update, verdict, non_finite, tuple(sorted(wrong)))


class _Part:
    """One part of the copy, cut into p slices, on its way through the exchange.

    Attributes:
        verdict, non_finite: the votes on this part, once it has begun.
        accused: (rank, slice) of those that did not send what they had fingerprinted.
    """

    verdict: Verdict
    non_finite: tuple[int, ...]

    def __init__(
        self,
        collectives: Collectives,
        plan: Plan,
        buffers: Buffers,
        copy: Any,
        agreement: Handle,
        memory: Memory,
        update: Any,
        name: str,
    ) -> None:
        self.accused: set[tuple[int, int]] = set()
        self._collectives, self._plan, self._agreement = collectives, plan, agreement
        self._buffers, self._copy, self._update = buffers, copy, update
        self._memory, self._name = memory, name
        p, rank = collectives.size, collectives.rank
        self._bounds = slice_bounds(len(copy), p)
        self._holders = slice_holders(plan.groups, plan.config.witnesses)
        # The slice that this rank owns, and those that it witnesses.
        self._held: list[int] = np.argmax(self._holders == rank, axis=1).tolist()
        self._senders = _senders(plan.groups, p, memory.distrusted)
        self._sent: list[Handle] = []  # the facts, then the slices
        self._has_begun = False
        self._accusations: Handle | None = None
        self._kept: tuple[int, ...] | None = None  # the groups whose votes are in the update
        self._broadcasts: list[Handle] = []
        self._wrong: set[int] = set()

    def send(self) -> None:
        """Let fingerprints and slices be on their way, unless they are."""
        if self._sent:
            return
        mine = self._senders[self._plan.groups.of(self._collectives.rank)]
        facts = examine(self._buffers, self._copy, self._bounds).ravel()
        slices = np.flatnonzero(mine == self._collectives.rank).tolist()
        self._sent = [
            self._collectives.allgather(f"facts{self._name}", facts),
            *self._send("slices", slices),
        ]

    def can_begin(self) -> bool:
        """Return whether `begin` has something to do and would not wait."""
        if self._has_begun or not self._sent:
            return False
        return self._agreement.is_done() and all(handle.is_done() for handle in self._sent)

    def begin(self) -> None:
        """Vote; when all votes are good, also aggregate: only another part could change that."""
        if self._has_begun:
            return
        self._has_begun = True
        self._agreement.wait()
        facts, *received = [handle.wait() for handle in self._sent]
        self._table = facts.reshape(len(self._bounds), len(self._bounds), -1)
        self.verdict = judge(self._plan.groups, self._table)
        self.non_finite = non_finite_votes(self.verdict, self._table)
        self._slices = [
            {group: parts[self._senders[group, s]] for group in self.verdict.winners}
            for s, parts in zip(self._held, received, strict=True)
        ]
        everyone = tuple(self.verdict.winners)
        is_good = not (self.verdict.abstentions or self.non_finite or self._repairs(everyone))
        if is_good and not self._plan.config.witnesses:
            self._check(everyone)
            self._aggregate(rule_for(self._plan, self.verdict, ()), everyone)

    def finish(self, rule: Aggregator | None, kept: tuple[int, ...]) -> set[int]:
        """See to it that the update is that of the kept groups; return who computed wrongly."""
        is_witnessed = self._plan.config.witnesses > 0
        while True:
            if self._accusations is None:
                self._repair(kept)
                self._check(kept)
            # What witnesses compute is compared, so they must have received the same.
            if is_witnessed and self._is_accused():
                continue
            if self._kept != kept:
                self._aggregate(rule, kept)
            if is_witnessed or not self._is_accused():
                break
        self.receive_update()
        self._wrong |= confirm(
            self._collectives, self._update, self._bounds, self._results, self._holders
        )
        return self._wrong

    def _repairs(self, kept: tuple[int, ...]) -> dict[tuple[int, int], int]:
        """Return other senders, by (group, slice), where the present one lost or was accused."""
        winners = {group: self.verdict.winners[group] for group in kept}
        return _repairs(self._plan.groups, winners, self._table, self._senders, self.accused)

    def _repair(self, kept: tuple[int, ...]) -> None:
        """Let others send what the present senders do not send as the majority has it."""
        repairs = self._repairs(kept)
        if not repairs:
            return
        asked = [s for (_, s), sender in repairs.items() if sender == self._collectives.rank]
        received = [handle.wait() for handle in self._send("repairs", asked)]
        for (group, s), sender in repairs.items():
            self._senders[group, s] = sender
            if s in self._held:
                j = self._held.index(s)
                self._slices[j][group] = received[j][sender]

    def _check(self, kept: tuple[int, ...]) -> None:
        """Accuse the senders whose slice was not what they had fingerprinted."""
        p, liars = self._collectives.size, []
        for s, votes in zip(self._held, self._slices, strict=True):
            senders = self._senders[list(kept), s]
            told = self._table[senders, s, :WORDS]
            is_as_told = (fingerprints([votes[group] for group in kept]) == told).all(axis=1)
            for i in np.flatnonzero(~is_as_told).tolist():
                liars.append(int(senders[i]) * p + s)
                # To go on with; the result will not count.
                votes[kept[i]] = self._copy[slice(*self._bounds[s])]
        name, words = f"accusations{self._name}", np.array(liars, np.int64)
        self._accusations = self._collectives.allgather(name, words)

    def _is_accused(self) -> bool:
        """Return whether somebody was accused; then others must send, and all is repeated."""
        assert self._accusations is not None
        accusations = self._accusations.wait().tolist()
        if not accusations:
            return False
        self.accused |= {divmod(accusation, len(self._bounds)) for accusation in accusations}
        self.receive_update()
        self._accusations = self._kept = None
        return True

    def _aggregate(self, rule: Aggregator | None, kept: tuple[int, ...]) -> None:
        """Compute the slices that this rank holds; broadcast its own, in place."""
        self.receive_update()  # of a former attempt
        self._kept = kept
        columns, self._results = [], []
        for j, (s, votes) in enumerate(zip(self._held, self._slices, strict=True)):
            start, stop = self._bounds[s]
            mine = self._update[start:stop]
            self._results.append(namespace(mine).copy(mine) if j else mine)
            columns.append(
                Columns(
                    self._buffers.cut(start, stop),
                    {group: votes[group] for group in kept},
                    self._memory.cut(start, stop),
                    [(0, stop - start)],
                )
            )
        self._wrong |= aggregate_slices(
            self._collectives, rule, columns, self._results, self._holders
        )
        self._broadcasts = broadcast_slices(
            self._collectives, self._update, self._bounds, f"update{self._name}"
        )

    def receive_update(self) -> None:
        """Wait for the slices of the others."""
        for handle in self._broadcasts:
            handle.wait()
        self._broadcasts = []

    def _send(self, name: str, slices: Collection[int]) -> list[Handle]:
        """Send some slices to their owners, and to their witnesses."""
        handles = []
        for j, receivers in enumerate(self._holders.tolist()):
            parts = [self._copy[:0]] * len(self._bounds)
            for s in slices:
                parts[receivers[s]] = self._copy[slice(*self._bounds[s])]
            spare = None if j else self._update
            full_name = f"{name}{self._name}" + (f".witness.{j}" if j else "")
            handles.append(self._collectives.alltoall(full_name, parts, spare))
        return handles


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


def _accuse(groups: Groups, verdict: Verdict, accused: Collection[int]) -> Verdict:
    """Return the verdict with the accused ranks among the dissenters."""
    votes = list(verdict.votes)
    for rank in sorted(accused):
        vote = votes[groups.of(rank)]
        dissenters = tuple(sorted({*vote.dissenters, rank}))
        votes[groups.of(rank)] = replace(vote, dissenters=dissenters)
    return Verdict(tuple(votes))

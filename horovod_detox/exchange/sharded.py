"""The exchange in which no rank receives a whole foreign gradient.

The copies are cut into p slices; rank s owns slice s.

1. Every rank fingerprints its slices. Allgather of all fingerprints; beside it, for each slice and
   each group, one sender sends that slice to its owner.
2. From the table of fingerprints every rank computes the same votes. Where a sender lost, a member
   of the majority sends that slice again.
3. Every owner checks what it received against the fingerprint and aggregates its columns; where a
   rule needs the Gram matrix, that of the slices is summed over the ranks.
4. Every owner broadcasts its slice of the update; beside it, owners accuse senders whose slice was
   not what they had fingerprinted. After an accusation, others send, and 3 and 4 are repeated.

With w witnesses, ranks of w other groups receive each slice, too, and do what its owner does: each
rank does 1 to 3 for the slice that it owns and those that it witnesses. Then

5. from the fingerprints of all results every rank learns which are those of most; a slice that
   arrived otherwise is broadcast again, by a witness, and its owner is named.

A rank receives `(1 + w) k / p + 1` times the gradient, that is `(1 + w) / r + 1`; allreduce: 2.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from horovod_detox.aggregators import Aggregator, gram_matrix
from horovod_detox.arrays import namespace
from horovod_detox.config import Plan
from horovod_detox.exchange.aggregation import (
    aggregate_votes,
    examine,
    non_finite_votes,
    partial_gram,
)
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.outcome import Memory, NoMajority, Outcome, rule_for
from horovod_detox.exchange.witnesses import confirm, majority
from horovod_detox.fingerprint import WORDS, fingerprint, slice_bounds
from horovod_detox.groups import Groups, slice_holders
from horovod_detox.layout import Buffers, Layout
from horovod_detox.vote import Verdict, judge

Bounds = list[tuple[int, int]]


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
    groups, rank, p = plan.groups, collectives.rank, collectives.size
    bounds = slice_bounds(len(copy), p)
    holders = slice_holders(groups, plan.config.witnesses)
    held = np.argmax(holders == rank, axis=1).tolist()  # the slice owned, and those witnessed

    senders = _senders(groups, p, memory.distrusted)
    table = collectives.allgather("facts", examine(layout.buffers, copy, bounds).ravel())
    asked = np.flatnonzero(senders[groups.of(rank)] == rank).tolist()
    received = _send(collectives, "slices", copy, bounds, asked, holders, update)
    agreement.wait()
    table = table.wait().reshape(p, p, -1)
    verdict = judge(groups, table)
    non_finite = non_finite_votes(verdict, table)
    rule = rule_for(plan, verdict, non_finite)
    slices = [
        {group: parts[senders[group, s]] for group in verdict.winners}
        for s, parts in zip(held, _wait(received), strict=True)
    ]

    accused: set[tuple[int, int]] = set()  # (rank, slice)
    while True:
        repairs = _repairs(groups, verdict, table, senders, accused)
        if repairs:
            asked = [s for (_, s), sender in repairs.items() if sender == rank]
            received = _wait(_send(collectives, "repairs", copy, bounds, asked, holders, update))
            for (group, s), sender in repairs.items():
                senders[group, s] = sender
                if s in held:
                    slices[held.index(s)][group] = received[held.index(s)][sender]
        liars, parts = [], []
        for j, (s, votes) in enumerate(zip(held, slices, strict=True)):
            mine = copy[slice(*bounds[s])]
            for group in verdict.winners:
                sender = int(senders[group, s])
                if not _is_as_told(votes[group], table[sender, s]):
                    liars.append(sender * p + s)
                    votes[group] = mine  # to go on with; the result will not count
            kept = [votes[group] for group in verdict.winners if group not in non_finite]
            centre = None if memory.previous is None else memory.previous[slice(*bounds[s])]
            result = namespace(mine).copy(mine) if j else update[slice(*bounds[s])]
            parts.append(_Part(layout.buffers.cut(*bounds[s]), kept, result, centre))
        accusations = collectives.allgather("accusations", np.array(liars, np.int64))
        # What witnesses compute is compared, so they must have received the same.
        new = _pairs(accusations, p) if plan.config.witnesses else set()
        if not new:
            wrong = _aggregate(collectives, rule, parts, holders)
            _share(collectives, update, bounds)
            new = set() if plan.config.witnesses else _pairs(accusations, p)
            if not new:
                results = [part.result for part in parts]
                wrong |= confirm(collectives, update, bounds, results, holders)
                verdict = _accuse(groups, verdict, accused)
                return Outcome(update, verdict, non_finite, tuple(sorted(wrong)))
        accused |= new


def _pairs(accusations: Handle, p: int) -> set[tuple[int, int]]:
    """Return the accused: (rank, slice)."""
    return {divmod(accusation, p) for accusation in accusations.wait().tolist()}


@dataclass(frozen=True)
class _Part:
    """What the aggregation of one slice needs, and the words that the result is written to."""

    buffers: Buffers
    votes: list[Any]
    result: Any
    previous: Any | None


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
    verdict: Verdict,
    table: np.ndarray,
    senders: np.ndarray,
    accused: Collection[tuple[int, int]],
) -> dict[tuple[int, int], int]:
    """Return other senders, by (group, slice), where the present one lost or was accused."""
    repairs = {}
    slices = np.arange(table.shape[1])
    for group, winners in verdict.winners.items():
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


def _send(
    collectives: Collectives,
    name: str,
    copy: Any,
    bounds: Bounds,
    slices: Collection[int],
    holders: np.ndarray,
    spare: Any,
) -> list[Handle]:
    """Send some slices to their owners, and to their witnesses."""
    handles = []
    for j, receivers in enumerate(holders.tolist()):
        parts = [copy[:0]] * len(bounds)
        for s in slices:
            parts[receivers[s]] = copy[slice(*bounds[s])]
        room = None if j else spare
        handles.append(collectives.alltoall(f"{name}.{j}" if j else name, parts, room))
    return handles


def _wait(handles: list[Handle]) -> list[Any]:
    return [handle.wait() for handle in handles]


def _is_as_told(words: Any, facts: np.ndarray) -> bool:
    """Return whether a slice has the fingerprint that its sender told."""
    return np.array_equal(fingerprint(words, [(0, len(words))])[0], facts[:WORDS])


def _aggregate(
    collectives: Collectives, rule: Aggregator | None, parts: list[_Part], holders: np.ndarray
) -> set[int]:
    """Compute the slices that this rank holds; return who erred in the Gram matrix."""
    wrong: set[int] = set()
    if len(holders) == 1 or rule is None or not rule.uses_gram:

        def gram(values: Any, reference: Any) -> np.ndarray:
            return collectives.allreduce("gram", gram_matrix(values, reference)).wait()
    else:
        grams = np.stack([partial_gram(part.buffers, part.votes, part.previous) for part in parts])
        gathered = collectives.allgather("grams", grams.view(np.int64).ravel()).wait()
        by_rank = gathered.reshape(collectives.size, len(parts), -1)
        true, wrong = majority(by_rank, holders)
        total = true.view(np.float64).sum(axis=0).reshape(grams.shape[1:])

        def gram(values: Any, reference: Any) -> np.ndarray:
            return total

    for part in parts:
        aggregate_votes(rule, part.buffers, part.votes, part.result, part.previous, gram)
    return wrong


def _share(collectives: Collectives, update: Any, bounds: Bounds) -> None:
    """Let every owner broadcast its slice of the update, in place."""
    handles = [
        collectives.broadcast(f"update.{owner}", update[start:stop], owner)
        for owner, (start, stop) in enumerate(bounds)
        if start < stop
    ]
    for handle in handles:
        handle.wait()


def _accuse(groups: Groups, verdict: Verdict, accused: Collection[tuple[int, int]]) -> Verdict:
    """Return the verdict with the accused among the dissenters."""
    votes = list(verdict.votes)
    for rank in sorted({rank for rank, _ in accused}):
        vote = votes[groups.of(rank)]
        dissenters = tuple(sorted({*vote.dissenters, rank}))
        votes[groups.of(rank)] = replace(vote, dissenters=dissenters)
    return Verdict(tuple(votes))

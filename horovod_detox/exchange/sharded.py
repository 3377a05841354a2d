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

A rank receives `k / p + 1` times the gradient, that is `1 / r + 1`; allreduce: 2 times.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from horovod_detox.aggregators import gram_matrix
from horovod_detox.arrays import like, namespace, view
from horovod_detox.config import Plan
from horovod_detox.exchange.aggregation import aggregate_votes, examine, non_finite_votes
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.outcome import Memory, NoMajority, Outcome, rule_for
from horovod_detox.fingerprint import WORDS, fingerprint, slice_bounds
from horovod_detox.groups import Groups
from horovod_detox.layout import Layout
from horovod_detox.vote import Verdict, judge

Bounds = list[tuple[int, int]]


def exchange(
    collectives: Collectives,
    plan: Plan,
    layout: Layout,
    copy: Any,
    agreement: Handle,
    memory: Memory,
) -> Outcome:
    """Turn this rank's copy into the update that all ranks share: an `outcome.Exchange`."""
    groups, rank, p = plan.groups, collectives.rank, collectives.size
    bounds = slice_bounds(len(copy), p)
    start, stop = bounds[rank]

    senders = _senders(groups, p, memory.distrusted)
    table = collectives.allgather("facts", examine(layout.buffers, copy, bounds).ravel())
    asked = np.flatnonzero(senders[groups.of(rank)] == rank).tolist()
    received = _send(collectives, "slices", copy, bounds, asked)
    agreement.wait()
    table = table.wait().reshape(p, p, -1)
    verdict = judge(groups, table)
    non_finite = non_finite_votes(verdict, table)
    rule = rule_for(plan, verdict, non_finite)
    received = received.wait()
    slices = {group: received[senders[group, rank]] for group in verdict.winners}

    accused: set[tuple[int, int]] = set()  # (rank, slice)
    while True:
        repairs = _repairs(groups, verdict, table, senders, accused)
        if repairs:
            asked = [s for (_, s), sender in repairs.items() if sender == rank]
            received = _send(collectives, "repairs", copy, bounds, asked).wait()
            for (group, s), sender in repairs.items():
                senders[group, s] = sender
                if s == rank:
                    slices[group] = received[sender]
        liars = []
        for group in verdict.winners:
            sender = senders[group, rank]
            if not _is_as_told(slices[group], table[sender, rank]):
                liars.append(sender)
                slices[group] = copy[start:stop]  # to go on with; the result will not count
        kept = [slices[group] for group in verdict.winners if group not in non_finite]
        result = aggregate_votes(
            rule,
            layout.buffers.cut(start, stop),
            kept or [copy[start:stop]],
            None if memory.previous is None else memory.previous[start:stop],
            lambda values, reference: collectives.allreduce(
                "gram", gram_matrix(values, reference)
            ).wait(),
        )
        accusations = collectives.allgather("accusations", np.array(liars, np.int64) * p + rank)
        update = _share_update(collectives, copy, bounds, result)
        new = {divmod(accusation, p) for accusation in accusations.wait().tolist()}
        if not new:
            return Outcome(update, _accuse(groups, verdict, accused), non_finite)
        accused |= new


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
    collectives: Collectives, name: str, copy: Any, bounds: Bounds, slices: Collection[int]
) -> Handle:
    """Send some slices to their owners."""
    parts = [
        copy[start:stop] if s in slices else copy[:0] for s, (start, stop) in enumerate(bounds)
    ]
    return collectives.alltoall(name, parts)


def _is_as_told(words: Any, facts: np.ndarray) -> bool:
    """Return whether a slice has the fingerprint that its sender told."""
    return np.array_equal(fingerprint(words, [(0, len(words))])[0], facts[:WORDS])


def _share_update(collectives: Collectives, copy: Any, bounds: Bounds, result: Any) -> Any:
    """Let every owner broadcast its slice of the update, in place."""
    words = view(copy)
    update = like(copy, namespace(words).empty((len(copy),), words, "int64"))
    start, stop = bounds[collectives.rank]
    update[start:stop] = result
    handles = [
        collectives.broadcast(f"update.{owner}", update[start:stop], owner)
        for owner, (start, stop) in enumerate(bounds)
        if start < stop
    ]
    for handle in handles:
        handle.wait()
    return update


def _accuse(groups: Groups, verdict: Verdict, accused: Collection[tuple[int, int]]) -> Verdict:
    """Return the verdict with the accused among the dissenters."""
    votes = list(verdict.votes)
    for rank in sorted({rank for rank, _ in accused}):
        vote = votes[groups.of(rank)]
        dissenters = tuple(sorted({*vote.dissenters, rank}))
        votes[groups.of(rank)] = replace(vote, dissenters=dissenters)
    return Verdict(tuple(votes))

"""The exchange in which every member sees every copy of its group: the scheme as published.

1. Copies: allgather inside each group.
2. Vote: every member compares the copies of its group.
3. Votes: allgather across the group leaders, with the fingerprints that decided them.
4. Aggregation: on every leader.
5. Update: from each leader to its group.

A rank receives `r + k + 1` times the gradient, a member that does not lead `r + 1` times.
Subgroups are alltoall calls in which outsiders get empty parts: an additional Horovod process set
would make every survivor abort when a rank dies.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_detox.config import Plan
from horovod_detox.exchange.aggregation import (
    Columns,
    aggregate_votes,
    assemble,
    examine,
    non_finite_votes,
)
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.outcome import Memory, Outcome, rule_for
from horovod_detox.fingerprint import slice_bounds
from horovod_detox.groups import Groups
from horovod_detox.layout import Layout
from horovod_detox.vote import judge, majority_vote


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
    members = groups.members[groups.of(rank)]
    is_leader = rank == members[0]
    bounds = slice_bounds(len(copy), p)

    copies = _multicast(collectives, "copies", copy, members)
    agreement.wait()
    copies = copies.wait()

    seen = np.stack([examine(layout.buffers, copies[member], bounds) for member in members])
    vote = majority_vote(members, seen)
    winner = assemble([copies[r] for r in vote.winners], bounds) if vote.winners else copy[:0]

    votes = _multicast(collectives, "votes", winner, groups.leaders if is_leader else ())
    facts = collectives.allgather("facts", seen.ravel() if is_leader else seen.ravel()[:0])
    table = _table(groups, facts.wait(), seen.shape[1:])
    votes = votes.wait()

    verdict = judge(groups, table)
    non_finite = non_finite_votes(verdict, table)
    rule = rule_for(plan, verdict, non_finite)
    if is_leader:
        kept = {g: votes[groups.leaders[g]] for g in verdict.winners if g not in non_finite}
        aggregate_votes(rule, [Columns(layout.buffers, kept, memory, bounds)], [update])
    updates = _multicast(collectives, "update", update, members if is_leader else ()).wait()
    return Outcome(updates[members[0]], verdict, non_finite)


def _multicast(collectives: Collectives, name: str, words: Any, receivers: Sequence[int]) -> Handle:
    """Send the same words to several ranks, and nothing to the others."""
    parts = [words if rank in receivers else words[:0] for rank in range(collectives.size)]
    return collectives.alltoall(name, parts)


def _table(groups: Groups, facts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Arrange by rank what every leader saw in its group: `(p, *shape)`."""
    order = [rank for ranks in sorted(groups.members) for rank in ranks]  # by leader
    table = np.empty((len(order), *shape), dtype=np.int64)
    table[order] = facts.reshape(-1, *shape)
    return table

"""The exchange in which every member sees every copy of its group: the scheme as published.

1. Copies: allgather inside each group.
2. Vote: every member compares the copies of its group.
3. Votes: allgather across the group leaders, with what decided them.
4. Aggregation: on every leader.
5. Update: from each leader to its group.

A rank receives `r + k + 1` times the gradient, a member that does not lead `r + 1` times.
Subgroups are alltoall calls in which outsiders get empty parts: an additional Horovod process set
would make every survivor abort when a rank dies.
"""

from collections.abc import Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Words
from horovod_detox.exchange.aggregation import (
    Columns,
    aggregate_votes,
    assemble,
    examine_together,
    non_finite_votes,
)
from horovod_detox.exchange.collectives import NOTHING, Collectives, Handle
from horovod_detox.exchange.cut import cut
from horovod_detox.exchange.step import Outcome, Step, rule_for
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import judge, majority_vote


def exchange(step: Step) -> Outcome:
    """Turn this rank's copy into the update that all ranks share."""
    collectives, groups, copy = step.collectives, step.plan.groups, step.copy
    rank, p = collectives.rank, collectives.size
    members = groups.members[groups.of(rank)]
    is_leader = rank == members[0]
    (part,) = cut(len(copy), p)
    bounds = part.slices

    begun = step.begin(
        lambda told, words: _multicast(collectives, "copies", words, members, told).wait()
    )
    copies = [message.words for message in begun]

    seen = examine_together(step.buffers, [copies[member] for member in members], bounds)
    vote = majority_vote(members, seen)
    winner = assemble([copies[r] for r in vote.winners], bounds) if vote.winners else copy[:0]

    votes = _multicast(collectives, "votes", winner, groups.leaders if is_leader else ())
    facts = collectives.allgather("facts", seen.ravel() if is_leader else seen.ravel()[:0])
    table = _table(groups, facts.wait(), seen.shape[1:])
    votes = [message.words for message in votes.wait()]

    verdict = judge(groups, table)
    non_finite = non_finite_votes(verdict, table)
    rule, means = rule_for(step.plan, verdict, non_finite), {}
    if is_leader:
        kept = {g: votes[groups.leaders[g]] for g in verdict.winners if g not in non_finite}
        columns = Columns(step.buffers, kept, step.memory, part.all_blocks)
        means = aggregate_votes(rule, [columns], [step.update])
    receivers = members if is_leader else ()
    updates = _multicast(collectives, "update", step.update, receivers).wait()
    return Outcome(updates[members[0]].words, verdict, non_finite, means=means)


def _multicast(
    collectives: Collectives,
    name: str,
    words: Words,
    receivers: Sequence[int],
    facts: np.ndarray = NOTHING,
) -> Handle:
    """Send the same words to several ranks, and nothing but facts to the others."""
    parts = [words if rank in receivers else words[:0] for rank in range(collectives.size)]
    return collectives.alltoall(name, facts, parts)


def _table(groups: Groups, facts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Arrange by rank what every leader saw in its group: `(p, *shape)`."""
    order = [rank for ranks in sorted(groups.members) for rank in ranks]  # by leader
    table = np.empty((len(order), *shape), dtype=np.int64)
    table[order] = facts.reshape(-1, *shape)
    return table

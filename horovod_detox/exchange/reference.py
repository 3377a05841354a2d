"""The whole algorithm on one machine, from all ranks' copies: what every exchange must equal."""

from collections.abc import Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Copy, namespace
from horovod_detox.exchange.aggregation import (
    Columns,
    aggregate_votes,
    assemble,
    decide,
    examine_together,
    non_finite_votes,
)
from horovod_detox.exchange.cut import Bounds, cut
from horovod_detox.exchange.step import AT_FIRST, Memory, Outcome, Plan, rule_for
from horovod_detox.packing.layout import Buffers
from horovod_detox.vote.distances import distances_in_groups
from horovod_detox.vote.majority import Verdict, judge


def aggregate_copies(
    plan: Plan,
    buffers: Buffers,
    copies: Sequence[Copy],
    memory: Memory = AT_FIRST,
    parts: int = 1,
) -> Outcome:
    """Vote on and aggregate the copies of all p ranks: p times `(w,)` words -> outcome.

    Args:
        plan: groups and rule.
        buffers: what the words are.
        copies: by rank; one object for several ranks is looked at once.
        memory: what is known from earlier steps.
        parts: in how many the copies are exchanged; votes are taken on p slices of each.

    Raises:
        NoMajority: when too many groups lost their majority.
    """
    pieces = cut(buffers.words, len(copies), parts)
    bounds = [bounds for part in pieces for bounds in part.slices]
    blocks = [block for part in pieces for block in part.all_blocks]
    vote = _vote_on_numbers if plan.tolerance else _vote_on_bits
    verdict, non_finite = vote(plan, buffers, copies, bounds)
    rule = rule_for(plan, verdict, non_finite)
    votes = {
        group: assemble([copies[rank] for rank in winners], bounds)
        for group, winners in verdict.winners.items()
        if group not in non_finite
    }
    update = namespace(copies[0]).empty((buffers.words,), copies[0], "int64")
    means = aggregate_votes(rule, [Columns(buffers, votes, memory, blocks)], [update])
    return Outcome(update, verdict, non_finite, means=means)


def _vote_on_bits(
    plan: Plan, buffers: Buffers, copies: Sequence[Copy], bounds: Sequence[Bounds]
) -> tuple[Verdict, tuple[int, ...]]:
    """Return the votes, slice by slice, and the groups whose vote is not finite."""
    table: np.ndarray = np.empty((len(copies), len(bounds), 2), np.int64)
    for members in plan.groups.members:
        of_group = [copies[rank] for rank in members]
        table[list(members)] = examine_together(buffers, of_group, bounds)
    verdict = judge(plan.groups, table)
    return verdict, non_finite_votes(verdict, table)


def _vote_on_numbers(
    plan: Plan, buffers: Buffers, copies: Sequence[Copy], bounds: Sequence[Bounds]
) -> tuple[Verdict, tuple[int, ...]]:
    """Return the votes with a tolerance and the groups whose vote is not finite."""
    of_slices = [
        distances_in_groups(
            plan.groups, buffers.cut(start, stop), [copy[start:stop] for copy in copies]
        )
        for start, stop in bounds
    ]
    return decide(plan, np.stack(of_slices))

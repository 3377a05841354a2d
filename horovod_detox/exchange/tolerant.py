"""The exchange of a vote with a tolerance: copies are compared as numbers, not as bits.

The copies are cut into p slices; rank s owns slice s.

1. Every rank sends each slice of its copy to the owner.
2. Every owner computes the distances between the copies of each group's members on its slice. All
   ranks gather these and add them up to the distances between whole copies, from which every rank
   computes the same votes. Nobody but the owner computes them, as machines that round differently
   could take different votes.
3. Every owner aggregates its columns of the winners' copies; where a rule needs the Gram matrix,
   all ranks gather those of the slices and add them up.
4. Every owner broadcasts its slice of the update.

Owners compare the very words that they aggregate, so nobody can send others than are voted on.

A rank receives `2 (p - 1) / p` times the gradient, as with allreduce.
"""

from typing import Any

import numpy as np

from horovod_detox.config import Plan
from horovod_detox.distances import distances_in_groups
from horovod_detox.exchange.aggregation import Columns, decide
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.outcome import Memory, Outcome, rule_for
from horovod_detox.exchange.owners import aggregate_slices, broadcast_slices
from horovod_detox.fingerprint import slice_bounds
from horovod_detox.layout import Layout


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
    p = collectives.size
    bounds = slice_bounds(len(copy), p)
    start, stop = bounds[collectives.rank]
    buffers = layout.buffers.cut(start, stop)

    slices = collectives.alltoall("slices", [copy[i:j] for i, j in bounds], update)
    agreement.wait()
    copies = slices.wait()

    mine = distances_in_groups(plan.groups, buffers, copies)
    gathered = collectives.allgather("distances", mine.ravel().view(np.int64)).wait()
    verdict, non_finite = decide(plan, gathered.view(np.float64).reshape(p, *mine.shape))

    rule = rule_for(plan, verdict, non_finite)
    winners = {group: winner for group, (winner,) in verdict.winners.items()}
    votes = {group: copies[rank] for group, rank in winners.items() if group not in non_finite}
    columns = Columns(buffers, votes, memory.cut(start, stop), [(0, stop - start)])
    owners = np.arange(p)[None]
    aggregate_slices(collectives, rule, [columns], [update[start:stop]], owners)
    for handle in broadcast_slices(collectives, update, bounds, "update"):
        handle.wait()
    return Outcome(update, verdict, non_finite)

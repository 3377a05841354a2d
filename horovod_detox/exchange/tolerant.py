"""The exchange of a vote with a tolerance: copies are compared as numbers, not as bits.

The copies are cut into p slices; rank s owns slice s.

1. Every rank sends each slice of its copy to the owner.
2. Every owner computes the distances between the copies of each group's members on its slice. All
   ranks gather these and add them up to the distances between whole copies, from which every rank
   computes the same votes. Nobody but the owner computes them, as machines that round differently
   could take different votes.
3. Every owner aggregates its columns of the winners' copies; where a rule needs the Gram matrix,
   all ranks gather those of the slices and add them up.
4. Every owner sends its slice of the update to all.

Owners compare the very words that they aggregate, so nobody can send others than are voted on.

A rank receives `2 (p - 1) / p` times the gradient, as with allreduce.
"""

from collections.abc import Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Copy
from horovod_detox.exchange.aggregation import Columns, decide
from horovod_detox.exchange.collectives import NOTHING, Message
from horovod_detox.exchange.cut import cut
from horovod_detox.exchange.owners import aggregate_slices, share_slices
from horovod_detox.exchange.step import Outcome, Step, rule_for
from horovod_detox.vote.distances import distances_in_groups


def exchange(step: Step) -> Outcome:
    """Turn this rank's copy into the update that all ranks share."""
    collectives, plan = step.collectives, step.plan
    p = collectives.size
    (part,) = cut(len(step.copy), p)
    mine = step.cut(*part.slices[collectives.rank])

    def send(told: np.ndarray, copy: Copy) -> Sequence[Message]:
        slices = [copy[i:j] for i, j in part.slices]
        return collectives.alltoall("slices", told, slices, step.update).wait()

    copies = [message.words for message in step.begin(send)]

    distances = distances_in_groups(plan.groups, mine.buffers, copies)
    gathered = collectives.allgather("distances", distances.ravel().view(np.int64)).wait()
    of_slices = gathered.view(np.float64).reshape(p, *distances.shape)
    verdict, non_finite = decide(plan, of_slices)

    rule = rule_for(plan, verdict, non_finite)
    winners = {group: winner for group, (winner,) in verdict.winners.items()}
    votes = {group: copies[rank] for group, rank in winners.items() if group not in non_finite}
    columns = Columns(mine.buffers, votes, mine.memory, part.blocks_within(collectives.rank))
    owners = np.arange(p)[None]
    means, _ = aggregate_slices(collectives, rule, [part], [columns], [mine.update], owners)
    share_slices(collectives, part, step.update, NOTHING).wait()
    return Outcome(step.update, verdict, non_finite, means=means)

"""The exchange of a single round: every rank gathers all copies and does the rest by itself.

A rank receives `p` times the gradient, so this is for gradients so small that the number of rounds
is what counts: `sharded` takes two, for a vote that it must know before it can send the update.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from horovod_detox.arrays.namespaces import Copy, like, view
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import Outcome, Step


def exchange(step: Step) -> Outcome:
    """Turn this rank's copy into the update that all ranks share."""
    memory, copies = step.memory, _gather(step)
    if memory.previous is not None:
        memory = replace(memory, previous=view(memory.previous))
    outcome = aggregate_copies(step.plan, step.buffers, copies, memory)
    step.update[:] = like(step.update, outcome.update)
    return replace(outcome, update=step.update)


def _gather(step: Step) -> Sequence[Copy]:
    """Return the copies of all ranks; those on an accelerator do not leave it."""
    copy, collectives = view(step.copy), step.collectives
    if not isinstance(copy, np.ndarray):
        received = collectives.alltoall("copies", [copy] * collectives.size)
        step.agreement.wait()
        return received.wait()
    gathered = collectives.allgather("copies", copy)
    step.agreement.wait()
    return list(gathered.wait().reshape(collectives.size, -1))

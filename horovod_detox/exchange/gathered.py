"""The exchange of a single round: every rank gathers all copies and does the rest by itself.

A rank receives `p` times the gradient, so this is for gradients so small that the number of rounds
is what counts: `sharded` takes two, for a vote that it must know before it can send the update.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from horovod_detox.arrays import like, view
from horovod_detox.config import Plan
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.outcome import Memory, Outcome
from horovod_detox.exchange.reference import aggregate_copies
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
    copies = _gather(collectives, view(copy), agreement)
    if memory.previous is not None:
        memory = replace(memory, previous=view(memory.previous))
    outcome = aggregate_copies(plan, layout, copies, memory)
    update[:] = like(update, outcome.update)
    return Outcome(update, outcome.verdict, outcome.non_finite)


def _gather(collectives: Collectives, copy: Any, agreement: Handle) -> Sequence[Any]:
    """Return the copies of all ranks; those on an accelerator do not leave it."""
    if not isinstance(copy, np.ndarray):
        received = collectives.alltoall("copies", [copy] * collectives.size)
        agreement.wait()
        return received.wait()
    gathered = collectives.allgather("copies", copy)
    agreement.wait()
    return list(gathered.wait().reshape(collectives.size, -1))

"""The exchange of a single round: every rank gathers all copies and does the rest by itself.

A rank receives `p` times the gradient, so this is for gradients so small that the number of rounds
is what counts: `sharded` takes two, for a vote that it must know before it can send the update.
"""

from dataclasses import replace

from horovod_detox.arrays.namespaces import like, view
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import Outcome, Step


def exchange(step: Step) -> Outcome:
    """Turn this rank's copy into the update that all ranks share."""
    memory, send = step.memory, step.collectives.allgather_words
    messages = step.begin(lambda told, copy: send("copies", told, copy).wait())
    copies = [view(message.words) for message in messages]
    if memory.previous is not None:
        memory = replace(memory, previous=view(memory.previous))
    outcome = aggregate_copies(step.plan, step.buffers, copies, memory)
    step.update[:] = like(step.update, outcome.update)
    return replace(outcome, update=step.update)

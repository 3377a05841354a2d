"""The exchange while some ranks have joined, in the sense of Horovod: they have no more data.

Until all have, Horovod adds zeros for them in every allreduce and refuses any other collective. So
what ranks tell each other is added up here, each in a row of its own:

1. Facts: every rank's record and fingerprints. Who has an empty row has joined.
2. Vote, as in `sharded`. A group most of whose members have joined has no vote.
3. Votes: each slice of each group's vote comes from a rank that holds it.
4. Aggregation: on every rank.

A rank sends and receives `2 k` times the gradient, which is for the last steps of an epoch. Unlike
elsewhere, it is not checked that slices arrive as they were sent: who holds another update is named
in the next step. Rules are given the votes, not means of them.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from horovod_detox.arrays.namespaces import Copy, Words, namespace
from horovod_detox.exchange.aggregation import (
    Columns,
    aggregate_votes,
    examine,
    non_finite_votes,
)
from horovod_detox.exchange.collectives import Collectives, Message
from horovod_detox.exchange.control import ENTROPY, is_incomplete
from horovod_detox.exchange.cut import cut
from horovod_detox.exchange.step import Outcome, Step, rule_for
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import Verdict, Vote, judge


def exchange(step: Step) -> Outcome:
    """Turn this rank's copy into the update of all ranks that have not joined."""
    collectives, groups = step.collectives, step.plan.groups
    (part,) = cut(len(step.copy), collectives.size)
    absent: set[int] = set()

    def send(told: np.ndarray, copy: Copy) -> Sequence[Message]:
        seen = np.zeros((len(part.slices), 3), np.int64)
        if len(copy) == len(step.copy):
            seen = examine(step.fingerprints, step.buffers, copy, part.slices)
        rows = _rows(collectives, "joined.facts", np.concatenate([[1], told, seen.ravel()]))
        absent.clear()
        absent.update(np.flatnonzero(rows[:, 0] != 1).tolist())
        _stand_in(rows[:, 1 : 1 + len(told)], absent)
        return [Message(row[1:], copy[:0]) for row in rows]

    messages = step.begin(send)
    table = np.stack([message.facts[-3 * len(part.slices) :] for message in messages])
    table = table.reshape(len(messages), -1, 3)
    verdict = _judge(groups, table, absent)
    non_finite = non_finite_votes(verdict, table)
    rule = rule_for(step.plan, verdict, non_finite)
    kept = {g: ranks for g, ranks in verdict.winners.items() if g not in non_finite}
    votes = _votes(step, part.slices, kept)
    columns = Columns(step.buffers, votes, replace(step.memory, momentum=None), part.all_blocks)
    aggregate_votes(rule, [columns], [step.update])
    return Outcome(step.update, verdict, non_finite)


def agree_on_secret(collectives: Collectives) -> bytes:
    """Return 32 bytes in which the random bytes of all ranks are mixed that have not joined."""
    rows = _rows(collectives, "joined.secret", np.frombuffer(os.urandom(ENTROPY), np.int64))
    return hashlib.blake2b(rows.tobytes(), digest_size=ENTROPY).digest()


def _rows(collectives: Collectives, name: str, facts: np.ndarray) -> np.ndarray:
    """Gather facts of one length: `(n,)` of int64 -> `(p, n)`; the rows of joined ranks are 0."""
    table = np.zeros((collectives.size, len(facts)), np.int64)
    table[collectives.rank] = facts
    return collectives.add_facts(name, table.ravel()).wait().reshape(table.shape)


def _stand_in(records: np.ndarray, absent: set[int]) -> None:
    """Let joined ranks speak as another does, of those that lack gradients if there is one."""
    present = [rank for rank in range(len(records)) if rank not in absent]
    lacking = [rank for rank in present if is_incomplete(records[rank])]
    records[list(absent)] = records[(lacking or present)[0]]


def _judge(groups: Groups, table: np.ndarray, absent: set[int]) -> Verdict:
    """Take the votes, in which to have joined is a vote, too."""
    table[list(absent)] = -1
    verdict = judge(groups, table)
    votes = list(verdict.votes)
    for group, members in enumerate(groups.members):
        if 2 * len(absent.intersection(members)) > len(members):
            others = tuple(rank for rank in members if rank not in absent)
            votes[group] = Vote(None, others, has_joined=True)
    return Verdict(tuple(votes))


def _votes(
    step: Step, slices: Sequence[tuple[int, int]], winners: dict[int, tuple[int, ...]]
) -> dict[int, Words]:
    """Return the votes of groups, whose slices come from the ranks that won them."""
    collectives, width = step.collectives, len(step.copy)
    words = namespace(step.copy).empty((len(winners) * width,), step.copy, "int64")
    words[:] = 0
    for i, ranks in enumerate(winners.values()):
        for (start, stop), rank in zip(slices, ranks, strict=True):
            if rank == collectives.rank:
                words[i * width + start : i * width + stop] = step.copy[start:stop]
    words = collectives.add_words("joined.votes", words).wait()
    return {group: words[i * width : (i + 1) * width] for i, group in enumerate(winners)}

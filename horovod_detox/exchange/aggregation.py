"""From copies to votes to the update, in words: the steps that all exchanges share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from horovod_detox.aggregators import Aggregator, finite_rows, gram_matrix
from horovod_detox.aggregators.aggregator import Gram
from horovod_detox.aggregators.signs import sign_majority
from horovod_detox.arrays import namespace, view
from horovod_detox.exchange.outcome import AT_FIRST, Memory
from horovod_detox.fingerprint import fingerprint
from horovod_detox.layout import Buffers
from horovod_detox.vote import Verdict


def assemble(copies: Sequence[Any], bounds: Sequence[tuple[int, int]]) -> Any:
    """Return the vote whose slice i is that of `copies[i]`, each `(w,)` words."""
    if all(copy is copies[0] for copy in copies):
        return copies[0]
    vote = namespace(copies[0]).copy(copies[0])
    for copy, (start, stop) in zip(copies, bounds, strict=True):
        vote[start:stop] = copy[start:stop]
    return vote


def examine(buffers: Buffers, copy: Any, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return what a vote compares: fingerprint and finiteness of each slice, `(slices, 3)`."""
    finite: Any = True
    if not _is_finite(buffers, copy):
        finite = [_is_finite(buffers.cut(start, stop), copy[start:stop]) for start, stop in bounds]
    return np.column_stack([fingerprint(copy, bounds), np.full(len(bounds), finite)])


def non_finite_votes(verdict: Verdict, table: np.ndarray) -> tuple[int, ...]:
    """Return the groups whose vote holds NaN or infinity.

    Args:
        verdict: the votes.
        table: `(p, slices, 3)`, what `examine` returned on every rank.
    """
    slices = np.arange(table.shape[1])
    return tuple(
        group
        for group, winners in verdict.winners.items()
        if not table[list(winners), slices, -1].all()
    )


@dataclass(frozen=True)
class Columns:
    """The finite votes on some words, and what is known of these from earlier steps.

    Attributes:
        buffers: what the words are.
        votes: `(w,)` words each, by group.
        memory: of these words.
    """

    buffers: Buffers
    votes: Mapping[int, Any]
    memory: Memory = AT_FIRST

    @cached_property
    def rows(self) -> list[Any]:
        """Return what the rule is given: the votes' numbers, or running means, n times `(d,)`."""
        buffers, momentum = self.buffers.numbers, self.memory.momentum
        numbers = {group: _numbers(buffers, vote) for group, vote in self.votes.items()}
        return list(numbers.values()) if momentum is None else momentum.advance(numbers)

    @property
    def centre(self) -> Any | None:
        """Return the numbers of the previous update: `(d,)`."""
        previous = self.memory.previous
        return None if previous is None else _numbers(self.buffers.numbers, previous)

    def gram(self) -> np.ndarray:
        """Return the part of these columns in the Gram matrix of the rows."""
        return gram_matrix(self.rows, self.centre)


def aggregate_votes(
    rule: Aggregator | None, columns: Columns, update: Any, gram: Gram = gram_matrix
) -> None:
    """Reduce finite votes to the update.

    Args:
        rule: fitted to n votes; None: the update is NaN. It sees all parameters as one vector.
            Of signs the majority is taken, which is what the only rule for them does.
        columns: the votes.
        update: `(w,)` words, written to.
        gram: returns the Gram matrix of the whole rows, when these are slices.
    """
    words = view(update)
    for segment in columns.buffers.signs:
        part = slice(segment.start, segment.stop)
        signs = [view(vote)[part] for vote in columns.votes.values()]
        words[part] = 0 if rule is None else sign_majority(signs)
    result: Any = np.nan
    if rule is not None:
        result = rule.reduce(columns.rows, gram, columns.centre)
    buffers, start = columns.buffers.numbers, 0
    for segment, buffer in zip(buffers.segments, buffers.typed(words), strict=True):
        words[segment.start : segment.stop][-1:] = 0  # what may lie behind the end of the buffer
        buffer[:] = result if rule is None else result[start : start + len(buffer)]
        start += len(buffer)


def _is_finite(buffers: Buffers, words: Any) -> bool:
    return all(
        finite_rows(buffer[None]).all()
        for buffer in buffers.numbers.typed(view(words))
        if len(buffer)
    )


def _numbers(buffers: Buffers, vote: Any) -> Any:
    """Return a vote as one vector of numbers, a view if possible: `(w,) -> (d,)`."""
    words = view(vote)
    typed = buffers.typed(words)
    if [segment.dtype for segment in buffers.segments] == [buffers.dtype]:
        return typed[0]
    length = sum(segment.length for segment in buffers.segments)
    numbers = namespace(words).empty((length,), words, buffers.dtype)
    start = 0
    for buffer in typed:
        numbers[start : start + len(buffer)] = buffer
        start += len(buffer)
    return numbers

"""From copies to votes to the update, in words: the steps that all exchanges share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_detox.aggregators import Aggregator, finite_rows, gram_matrix
from horovod_detox.aggregators.aggregator import Gram
from horovod_detox.aggregators.signs import sign_majority
from horovod_detox.arrays import namespace, view
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


def aggregate_votes(
    rule: Aggregator | None,
    buffers: Buffers,
    votes: Sequence[Any],
    update: Any,
    previous: Any | None = None,
    gram: Gram = gram_matrix,
) -> None:
    """Reduce finite votes, n times `(w,)` words, to the update.

    Args:
        rule: fitted to n votes; None: the update is NaN. It sees all parameters as one vector.
            Of signs the majority is taken, which is what the only rule for them does.
        buffers: what the words are.
        votes: the finite votes.
        update: `(w,)` words, written to.
        previous: `(w,)` words of the previous update.
        gram: returns the Gram matrix of the whole votes, when these are slices.
    """
    words = view(update)
    for segment in buffers.signs:
        part = slice(segment.start, segment.stop)
        words[part] = 0 if rule is None else sign_majority([view(vote)[part] for vote in votes])
    buffers = buffers.numbers
    result: Any = np.nan
    if rule is not None:
        centre = None if previous is None else _numbers(buffers, previous)
        result = rule.reduce([_numbers(buffers, vote) for vote in votes], gram, centre)
    start = 0
    for segment, buffer in zip(buffers.segments, buffers.typed(words), strict=True):
        words[segment.start : segment.stop][-1:] = 0  # what may lie behind the end of the buffer
        buffer[:] = result if rule is None else result[start : start + len(buffer)]
        start += len(buffer)


def partial_gram(buffers: Buffers, votes: Sequence[Any], previous: Any | None) -> np.ndarray:
    """Return the Gram matrix of slices of finite votes: n times `(w,)` words."""
    buffers = buffers.numbers
    centre = None if previous is None else _numbers(buffers, previous)
    return gram_matrix([_numbers(buffers, vote) for vote in votes], centre)


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

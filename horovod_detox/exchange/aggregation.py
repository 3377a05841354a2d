"""From copies to votes to the update, in words: the steps that all exchanges share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_detox.aggregators import Aggregator, finite_rows, gram_matrix
from horovod_detox.aggregators.aggregator import Gram
from horovod_detox.aggregators.signs import sign_majority
from horovod_detox.arrays import like, namespace, view
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
    finite = [_is_finite(buffers.cut(start, stop), copy[start:stop]) for start, stop in bounds]
    return np.column_stack([fingerprint(copy, bounds), finite])


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
    previous: Any | None = None,
    gram: Gram = gram_matrix,
) -> Any:
    """Reduce finite votes to the update: n times `(w,)` words -> `(w,)` words.

    Args:
        rule: fitted to n votes; None: the update is NaN. It sees all parameters as one vector.
            Of signs the majority is taken, which is what the only rule for them does.
        buffers: what the words are.
        votes: the finite votes; with `rule` None, any words to take kind and device from.
        previous: `(w,)` words of the previous update.
        gram: returns the Gram matrix of the whole votes, when these are slices.
    """
    words = view(votes[0])
    update = namespace(words).empty((buffers.words,), words, "int64")
    update[:] = 0
    if rule is not None:
        _count_signs(buffers, votes, update)
    buffers = buffers.numbers
    result: Any = np.nan
    if rule is not None:
        centre = None if previous is None else _matrix(buffers, [previous])[0]
        result = rule.reduce(_matrix(buffers, votes), gram, centre)
    start = 0
    for buffer in buffers.typed(update):
        buffer[:] = result if rule is None else result[start : start + len(buffer)]
        start += len(buffer)
    return like(votes[0], update)


def partial_gram(buffers: Buffers, votes: Sequence[Any], previous: Any | None) -> np.ndarray:
    """Return the Gram matrix of slices of finite votes: n times `(w,)` words."""
    buffers = buffers.numbers
    centre = None if previous is None else _matrix(buffers, [previous])[0]
    return gram_matrix(_matrix(buffers, votes), centre)


def _count_signs(buffers: Buffers, votes: Sequence[Any], update: Any) -> None:
    """Write the majority of the votes' signs into the update."""
    for segment in buffers.signs:
        words = slice(segment.start, segment.stop)
        update[words] = sign_majority([view(vote)[words] for vote in votes])


def _is_finite(buffers: Buffers, words: Any) -> bool:
    return all(
        finite_rows(buffer[None]).all()
        for buffer in buffers.numbers.typed(view(words))
        if len(buffer)
    )


def _matrix(buffers: Buffers, votes: Sequence[Any]) -> Any:
    """Return the votes as one matrix of numbers: `(n, d)`."""
    words = view(votes[0])
    length = sum(segment.length for segment in buffers.segments)
    matrix = namespace(words).empty((len(votes), length), words, buffers.dtype)
    for row, vote in zip(matrix, votes, strict=True):
        start = 0
        for buffer in buffers.typed(view(vote)):
            row[start : start + len(buffer)] = buffer
            start += len(buffer)
    return matrix

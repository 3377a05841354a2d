"""From copies to votes to the update, in words: the steps that all exchanges share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from horovod_detox.aggregators import Aggregator, gram_matrix
from horovod_detox.aggregators.signs import sign_majority
from horovod_detox.arrays.blocks import Rows, finite_rows
from horovod_detox.arrays.namespaces import Copy, Vector, Words, dtype_name, namespace, view
from horovod_detox.exchange.cut import Bounds
from horovod_detox.exchange.momentum import Means
from horovod_detox.exchange.step import Memory, Plan
from horovod_detox.packing.layout import Buffers
from horovod_detox.vote.fingerprint import Fingerprints, labels
from horovod_detox.vote.majority import Verdict, judge_distances


def assemble(copies: Sequence[Copy], bounds: Sequence[Bounds]) -> Words:
    """Return the vote whose slice i is that of `copies[i]`, each `(w,)` words."""
    if all(copy is copies[0] for copy in copies):
        return copies[0]
    vote = namespace(copies[0]).copy(copies[0])
    for copy, (start, stop) in zip(copies, bounds, strict=True):
        vote[start:stop] = copy[start:stop]
    return vote


def examine(
    fingerprints: Fingerprints, buffers: Buffers, copy: Copy, bounds: Sequence[Bounds]
) -> np.ndarray:
    """Return what a vote compares: fingerprint and finiteness of each slice, `(slices, 3)`.

    Args:
        fingerprints: of this step.
        buffers: what the words of the copy are.
        copy: `(w,)` words.
        bounds: of slices that follow each other.
    """
    dtypes = {segment.dtype for segment in buffers.numbers.segments}
    starts = [start for start, _ in bounds]
    digests, finite = fingerprints.look(
        [copy[start:stop] for start, stop in bounds],
        starts,
        dtypes.pop() if len(dtypes) == 1 else None,
    )
    if not finite.all():
        finite = finite | _finite_slices(buffers, copy, bounds)
    return np.column_stack([digests, finite])


def examine_together(
    buffers: Buffers, copies: Sequence[Copy], bounds: Sequence[Bounds]
) -> np.ndarray:
    """Return what a vote on copies that are at hand compares: `(n, slices, 2)`.

    That is which slices are the same, see `labels`, and the finiteness of each.
    """
    same = labels(copies, bounds)
    finite = np.ones(same.shape, bool)
    for i in set(same.ravel().tolist()):
        finite[i] = _finite_slices(buffers, copies[i], bounds)
    return np.stack([same, np.take_along_axis(finite, same, axis=0)], axis=2)


def non_finite_votes(verdict: Verdict, table: np.ndarray) -> tuple[int, ...]:
    """Return the groups whose vote holds NaN or infinity.

    Args:
        verdict: the votes.
        table: `(p, slices, n)`, what `examine` returned on every rank, or `examine_together`.
    """
    slices = np.arange(table.shape[1])
    return tuple(
        group
        for group, winners in verdict.winners.items()
        if not table[list(winners), slices, -1].all()
    )


def decide(plan: Plan, of_slices: np.ndarray) -> tuple[Verdict, tuple[int, ...]]:
    """Take the votes with a tolerance; return them and the groups whose vote is not finite.

    Args:
        plan: groups and tolerance.
        of_slices: `(slices, k, m, m)`, what `distances_in_groups` returned for each slice.
    """
    distances = add_up(of_slices)
    verdict = judge_distances(plan.groups, distances, plan.tolerance)
    squares = distances.diagonal(axis1=1, axis2=2)  # of the lengths, (k, m)
    non_finite = tuple(
        group
        for group, (winner,) in verdict.winners.items()
        if np.isinf(squares[group, plan.groups.members[group].index(winner)])
    )
    return verdict, non_finite


@dataclass(frozen=True)
class Columns:
    """The finite votes on some words, and what is known of these from earlier steps.

    Attributes:
        buffers: what the words are.
        votes: `(w,)` words each, by group.
        memory: of these words.
        blocks: the words of each block. Their Gram matrices are added up, in order, so that the
            sum has the same bits whether one rank computes all of them or each a part.
    """

    buffers: Buffers
    votes: Mapping[int, Words]
    memory: Memory
    blocks: Sequence[Bounds]

    @cached_property
    def rows(self) -> Mapping[int, Vector]:
        """Return what the rule is given, `(d,)` by group: the votes' numbers, or running means."""
        buffers, momentum = self.buffers.numbers, self.memory.momentum
        numbers = {group: _numbers(buffers, vote) for group, vote in self.votes.items()}
        return numbers if momentum is None else momentum.advance(numbers)

    @property
    def centre(self) -> Vector | None:
        """Return the numbers of the previous update: `(d,)`."""
        previous = self.memory.previous
        return None if previous is None else _numbers(self.buffers.numbers, previous)

    @cached_property
    def widths(self) -> list[int]:
        """Return how many numbers each block holds."""
        return [
            sum(segment.length for segment in self.buffers.cut(start, stop).numbers.segments)
            for start, stop in self.blocks
        ]

    @cached_property
    def grams(self) -> np.ndarray:
        """Return the Gram matrix of the rows and the centre in each block: `(blocks, m, m)`."""
        return _grams(list(self.rows.values()), self.centre, self.widths)


def add_up(matrices: np.ndarray) -> np.ndarray:
    """Return the sum of matrices, in the same bits wherever: `(n, m, m) -> (m, m)`."""
    return matrices.sum(axis=0)


def aggregate_votes(
    rule: Aggregator | None,
    parts: Sequence[Columns],
    updates: Sequence[Words],
    total: Callable[[np.ndarray], np.ndarray] = add_up,
) -> Means:
    """Reduce finite votes to the update, on one or several parts of the words.

    Args:
        rule: fitted to n votes; None: the update is NaN. It sees all parameters as one vector.
            Of signs the majority is taken, which is what the only rule for them does.
        parts: the votes of the same groups on different words.
        updates: the words of each part, `(w,)`, written to.
        total: returns the Gram matrix of the whole rows, given those of the blocks that are here.

    Returns:
        the new means of the votes, with momentum.
    """
    result: Vector | None = None
    means: Means = {}
    if rule is not None:
        widths = [width for part in parts for width in part.widths]
        by_part = [part.rows.values() for part in parts]
        rows = [_beside(pieces) for pieces in zip(*by_part, strict=True)]
        centres = [part.centre for part in parts]
        centre = None if centres[0] is None else _beside(centres)

        def gram(values: Rows, reference: Vector | None) -> np.ndarray:
            if values is rows and reference is centre:
                return total(np.concatenate([part.grams for part in parts]))
            return total(_grams(values, reference, widths))

        result = rule.reduce(rows, gram, centre)
        means = {m.words: part.rows for part in parts if (m := part.memory.momentum)}
    start = 0
    for part, update in zip(parts, updates, strict=True):
        stop = start + sum(part.widths)
        _write(view(update), part, None if result is None else result[start:stop])
        start = stop
    return means


def _write(words: Words, part: Columns, numbers: Vector | None) -> None:
    """Write the update of a part: signs as most votes have them, and numbers; None: NaN."""
    for segment in part.buffers.signs:
        place = slice(segment.start, segment.stop)
        signs = [view(vote)[place] for vote in part.votes.values()]
        words[place] = 0 if numbers is None else sign_majority(signs)
    buffers, start = part.buffers.numbers, 0
    for segment, buffer in zip(buffers.segments, buffers.typed(words), strict=True):
        words[segment.start : segment.stop][-1:] = 0  # what may lie behind the end of the buffer
        buffer[:] = np.nan if numbers is None else numbers[start : start + len(buffer)]
        start += len(buffer)


def _grams(values: Rows, reference: Vector | None, widths: Sequence[int]) -> np.ndarray:
    """Return the Gram matrix of every block of columns: n times `(d,)` -> `(blocks, m, m)`."""
    if not widths:
        return np.empty((0, len(values) + 1, len(values) + 1))
    stops = np.cumsum(widths).tolist()
    return np.stack(
        [
            gram_matrix(
                [row[start:stop] for row in values],
                None if reference is None else reference[start:stop],
            )
            for start, stop in zip([0, *stops], stops, strict=False)
        ]
    )


def _beside(pieces: Sequence[Vector]) -> Vector:
    """Return the columns of all parts as one vector."""
    first = pieces[0]
    return first if len(pieces) == 1 else _joined(pieces, first, dtype_name(first))


def _joined(pieces: Sequence[Vector], like: Any, dtype: str) -> Vector:
    """Join vectors into one of this dtype, of the same kind as `like`."""
    joined = namespace(like).empty((sum(map(len, pieces)),), like, dtype)
    start = 0
    for piece in pieces:
        joined[start : start + len(piece)] = piece
        start += len(piece)
    return joined


def _finite_slices(buffers: Buffers, copy: Copy, bounds: Sequence[Bounds]) -> np.ndarray:
    """Say which of some slices that follow each other hold finite numbers: `(slices,)` of bool."""
    finite: Any = True
    if not _is_finite(buffers, copy, (bounds[0][0], bounds[-1][1])):
        finite = [_is_finite(buffers, copy, slice_) for slice_ in bounds]
    return np.full(len(bounds), finite)


def _is_finite(buffers: Buffers, copy: Copy, bounds: Bounds) -> bool:
    words = view(copy[slice(*bounds)])
    return all(
        finite_rows(buffer[None]).all()
        for buffer in buffers.cut(*bounds).numbers.typed(words)
        if len(buffer)
    )


def _numbers(buffers: Buffers, vote: Words) -> Vector:
    """Return a vote as one vector of numbers, a view if possible: `(w,) -> (d,)`."""
    words = view(vote)
    typed = buffers.typed(words)
    if [segment.dtype for segment in buffers.segments] == [buffers.dtype]:
        return typed[0]
    return _joined(typed, words, buffers.dtype)

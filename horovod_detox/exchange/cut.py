"""Where the words of a copy are cut: into blocks, slices of several blocks, parts of p slices.

Each rank owns one slice of each part. Gram matrices are added up block by block, and the blocks
follow from the size of the copy and the number of ranks alone, so that no bit of an update depends
on the parts in which the copy travels.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from horovod_detox.vote.fingerprint import slice_bounds

MOST_BLOCKS = 64
"""Blocks of each rank, a power of two: so many parts there may be."""
BLOCK = 8192
"""A block of a large copy has at least so many words: its Gram matrix travels beside it."""

Bounds = tuple[int, int]
"""The words, `(start, stop)`, of a copy."""


@dataclass(frozen=True)
class Part:
    """Some words of a copy that travel together.

    Attributes:
        number: counts the parts of a copy from 0.
        slices: the words of each of the p slices, one after another.
        blocks: those of each slice.
    """

    number: int
    slices: Sequence[Bounds]
    blocks: Sequence[Sequence[Bounds]]

    @property
    def name(self) -> str:
        """Return what tells its collectives from those of other parts."""
        return f".{self.number}" if self.number else ""

    @property
    def start(self) -> int:
        """Return its first word."""
        return self.slices[0][0]

    @property
    def stop(self) -> int:
        """Return the word after its last."""
        return self.slices[-1][1]

    @property
    def all_blocks(self) -> list[Bounds]:
        """Return the blocks of all slices, in order."""
        return [block for of_slice in self.blocks for block in of_slice]

    def blocks_within(self, s: int) -> list[Bounds]:
        """Return the blocks of slice s, counted from its first word."""
        first = self.slices[s][0]
        return [(start - first, stop - first) for start, stop in self.blocks[s]]


def cut(words: int, ranks: int, parts: int = 1, without: Collection[int] = ()) -> list[Part]:
    """Cut a copy for p ranks into equal parts, at least so many, or as many as it can be.

    Their number is a power of two. Neither parts nor blocks depend on `without`, the ranks whose
    slices are empty, since nothing is to be left to them; of all ranks it would be no restriction.

    >>> [part.slices for part in cut(10, 2, parts=4)]
    [[(0, 5), (5, 10)]]
    >>> [(part.number, part.start, part.stop) for part in cut(65536, 2, parts=2)]
    [(0, 0, 32768), (1, 32768, 65536)]
    >>> cut(65536, 2)[0].blocks[0]
    [(0, 8192), (8192, 16384), (16384, 24576), (24576, 32768)]
    >>> cut(9, 3, without=[1])[0].slices
    [(0, 6), (6, 6), (6, 9)]
    """
    owners = [rank for rank in range(ranks) if rank not in without] or list(range(ranks))
    per_rank = 1
    while 2 * per_rank <= MOST_BLOCKS and words >= 2 * per_rank * ranks * BLOCK:
        per_rank *= 2
    per_slice = per_rank
    while per_slice > 1 and per_rank < parts * per_slice:
        per_slice //= 2
    blocks = slice_bounds(words, ranks * per_rank)
    per_part = ranks * per_slice
    return [
        _part(number, blocks[i : i + per_part], ranks, owners)
        for number, i in enumerate(range(0, len(blocks), per_part))
    ]


def _part(number: int, blocks: Sequence[Bounds], ranks: int, owners: Sequence[int]) -> Part:
    """Deal the blocks of a part to their owners, in order; the slices of all others are empty."""
    runs: list[Sequence[Bounds]] = [[]] * ranks
    for owner, share in zip(owners, slice_bounds(len(blocks), len(owners)), strict=True):
        runs[owner] = blocks[slice(*share)]
    slices, stop = [], blocks[0][0]
    for run in runs:
        slices.append((run[0][0], run[-1][1]) if run else (stop, stop))
        stop = slices[-1][1]
    return Part(number, slices, runs)

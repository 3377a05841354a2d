"""NH in torch operations, for tensors on an accelerator, which they do not leave; see `nh`.

All is arithmetic of integers modulo 2^64, so neither the device nor the order in which it adds
changes a bit: the digests are those of `host_digests`. Operation by operation, every word is read
or written some 13 times, in blocks that large accelerators hold in their caches; as one kernel of a
GPU (`fused`) it is copied once and read once.
"""

from collections.abc import Sequence
from functools import partial

import torch

from horovod_detox.arrays.fused import Tensors, fused
from horovod_detox.arrays.nh import BLOCK, WORDS, Key

MOST_WORDS = 1 << 20
"""How many words are worked on at a time; the temporaries are four times as many, 32 MiB."""

_HALF = 32
_LOW = (1 << _HALF) - 1


def digests(slices: Sequence[torch.Tensor], key: Key, most_words: int = MOST_WORDS) -> torch.Tensor:
    """Digest slices: n times `(w,)` of int64 -> `(n, WORDS)` of int64 on their device."""
    found: list[torch.Tensor] = [words.new_zeros(WORDS) for words in slices]  # of no words
    by_length: dict[int, list[int]] = {}
    for i, words in enumerate(slices):
        if len(words):
            by_length.setdefault(len(words), []).append(i)
    for places in by_length.values():
        rows, level = [slices[i] for i in places], 0
        while level == 0 or len(rows[0]) > WORDS:
            rows, level = list(_hash_level(rows, key, level, most_words)), level + 1
        for i, row in zip(places, rows, strict=True):
            found[i] = row
    return torch.stack(found)


def _hash_level(
    rows: Sequence[torch.Tensor], key: Key, level: int, most_words: int
) -> torch.Tensor:
    """Digest every block of some rows: m times `(w,)` -> `(m, WORDS * blocks)`."""
    width, m = len(rows[0]), len(rows)
    low, high = torch.from_numpy(key.halves(level + 1)[level].astype("int64")).to(rows[0].device)
    step = max(1, most_words // (m * BLOCK)) * BLOCK
    whole = width // BLOCK * BLOCK
    pieces = [(start, min(start + step, whole), BLOCK) for start in range(0, whole, step)]
    if whole < width:
        pieces.append((whole, width, width - whole))
    found: list[torch.Tensor] = []
    fuse = partial(fused, _hash_blocks)
    for start, stop, size in pieces:
        tensors = torch.stack([row[start:stop] for row in rows]), low, high
        # What is left over has any length: a kernel for each would be too many.
        found += (fuse if size == BLOCK else _hash_blocks)(tensors, size)
    return torch.cat(found, dim=1)


def _hash_blocks(tensors: Tensors, size: int) -> Tensors:
    """Digest blocks of `size` words with two halves of a key: `(m, n * size) -> (m, WORDS * n)`."""
    words, low, high = tensors
    blocks = words.view(words.shape[0], -1, size)
    halves = blocks >> _HALF  # with signs, which the sums lose
    sums = [
        ((blocks + low[shift : shift + size]) & _LOW)
        .mul_((halves + high[shift : shift + size]).bitwise_and_(_LOW))
        .sum(2)
        for shift in range(WORDS)
    ]
    return (torch.stack(sums, dim=2).flatten(1),)

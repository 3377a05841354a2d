"""NH in torch operations, for tensors on an accelerator, which they do not leave; see `nh`.

All is arithmetic of integers modulo 2^64, so neither the device nor the order in which it adds
changes a bit: the digests are those of `host_digests`. Every word is read or written some 13 times,
in blocks that large accelerators hold in their caches.
"""

from collections.abc import Sequence

import torch

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
    return torch.cat(
        [
            _hash_blocks(torch.stack([row[start:stop] for row in rows]), low, high, size)
            for start, stop, size in pieces
        ],
        dim=1,
    )


def _hash_blocks(
    words: torch.Tensor, low: torch.Tensor, high: torch.Tensor, size: int
) -> torch.Tensor:
    """Digest blocks of `size` words: `(m, n * size) -> (m, WORDS * n)`."""
    blocks = words.view(len(words), -1, size)
    halves = blocks >> _HALF  # with signs, which the sums lose
    sums = [
        ((blocks + low[shift : shift + size]) & _LOW)
        .mul_((halves + high[shift : shift + size]).bitwise_and_(_LOW))
        .sum(2)
        for shift in range(WORDS)
    ]
    return torch.stack(sums, dim=2).flatten(1)

"""Digests of slices in torch operations, for tensors on an accelerator, which they do not leave.

Every word is added to a number that its position decides, and mixed by the finaliser of MurmurHash3
(Appleby, 2011). A digest is two sums of the mixed words, the second weighted by these numbers, as
in Fletcher's checksum. All is arithmetic of integers modulo 2^64, so neither the device nor the
order in which it adds changes a bit.

A change of a single word always changes both sums, as the finaliser is a permutation. A change of
several goes unnoticed with a probability of about 2^-127; where their positions differ by multiples
of 2^t, 2^(t - 127). Who sets out to forge a collision finds one.

Every word is read or written some 35 times, in blocks that large accelerators hold in their caches.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter

import torch

BLOCK = 1 << 20
"""How many words are worked on at a time; the temporaries are three times as many, 24 MiB."""

_NUMBER = 0x9E37_79B9_7F4A_7C15 - (1 << 64)
"""Odd. Position i has this number, times 2 i + 1."""
_FACTORS = (0xFF51_AFD7_ED55_8CCD - (1 << 64), 0xC4CE_B9FE_1A85_EC53 - (1 << 64))
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHIFT = 33
_SHIFTED = (1 << 64 - _SHIFT) - 1
"""The bits of a shifted word; before them torch repeats the sign."""


def digests(slices: Iterable[torch.Tensor], block: int = BLOCK) -> torch.Tensor:
    """Digest the raw bits of slices: n times `(w,)` -> `(n, 2)` of int64 on their device.

    Elements of other dtypes than int64 count as words whose value is that of their bits.
    """
    alike = groupby(slices, attrgetter("shape", "dtype"))
    return torch.cat([_sums(list(rows), block) for _, rows in alike])


def _sums(rows: Sequence[torch.Tensor], block: int) -> torch.Tensor:
    """Return the sums over rows of one length: m times `(w,) -> (m, 2)`."""
    integer = _INTEGERS[rows[0].element_size()]
    sums = rows[0].new_zeros((2, len(rows)), dtype=torch.int64)
    width, step = len(rows[0]), max(1, block // len(rows))
    for start in range(0, width, step):
        part = slice(start, min(start + step, width))
        odd = torch.arange(2 * part.start + 1, 2 * part.stop, 2, device=sums.device)
        numbers = odd.mul_(_NUMBER)
        words = torch.stack([row[part].view(integer) for row in rows]).long().add_(numbers)
        _mix(words)
        sums[0] += words.sum(1)
        sums[1] += words.mul_(numbers).sum(1)
    return sums.T


def _mix(words: torch.Tensor) -> None:
    """Let every bit of a word depend on all of its bits, in place."""
    _fold(words)
    for factor in _FACTORS:
        _fold(words.mul_(factor))


def _fold(words: torch.Tensor) -> None:
    words ^= (words >> _SHIFT).bitwise_and_(_SHIFTED)

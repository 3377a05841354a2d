"""NH for words in main memory, compiled by Numba; see `nh` for what it is.

The pass over the words also looks for NaN and infinity, which it hardly slows down.
"""

from collections.abc import Sequence

import numpy as np
from numba import (
    carray,  # pyright: ignore[reportPrivateImportUsage]
    njit,
)

from horovod_detox.arrays.host_kernels import address_as_pointer
from horovod_detox.arrays.nh import BLOCK, WORDS, Key, levels

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFF_FFFF)

# By element type: the bits of the exponents in a word, and what carries into the bit above when
# added to the exponent of an infinity; of float64, to those from 2^481 on, whose squares overflow.
_EXPONENTS = {
    "float16": (0x7C00_7C00_7C00_7C00, 0x0400_0400_0400_0400),
    "bfloat16": (0x7F80_7F80_7F80_7F80, 0x0080_0080_0080_0080),
    "float32": (0x7F80_0000_7F80_0000, 0x0080_0000_0080_0000),
    "float64": (0x7FF0_0000_0000_0000, (2048 - 1023 - 481) << 52),
}
_SIGNS = {"float64": 1 << 63, "float32": 0x8000_0000_8000_0000}
_SIGNS_OF_HALVES = 0x8000_8000_8000_8000


def digests(
    slices: Sequence[np.ndarray], key: Key, dtype: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Digest slices of words, and see whether they hold NaN or infinity.

    Args:
        slices: n times `(w,)` of int64.
        key: of the digests.
        dtype: the numbers that the words hold, where it is one type.

    Returns:
        `(n, WORDS)` of int64, and `(n,)` of bool: whether all numbers of a slice are finite, and
        no number of float64 is beyond `blocks.LARGEST`. False: nobody knows.
    """
    addresses = np.array([words.__array_interface__["data"][0] for words in slices], np.uint64)
    lengths = np.array([len(words) for words in slices])
    longest = int(lengths.max(initial=0))
    keys = key.halves(levels(longest))
    result = np.empty((len(slices), WORDS), np.uint64)
    carried = np.empty(len(slices), np.uint64)
    room = np.empty(WORDS * max(1, -(-longest // BLOCK)), np.uint64)
    if dtype not in _EXPONENTS:
        _digest(addresses, lengths, keys, None, room, result, carried)
        return result.view(np.int64), np.zeros(len(slices), bool)
    look = np.array(_EXPONENTS[dtype], np.uint64)
    _digest(addresses, lengths, keys, look, room, result, carried)
    return result.view(np.int64), (carried & np.uint64(_SIGNS.get(dtype, _SIGNS_OF_HALVES))) == 0


@njit(cache=True, nogil=True)
def _digest(
    addresses: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    look: np.ndarray | None,
    room: np.ndarray,
    result: np.ndarray,
    carried: np.ndarray,
) -> None:
    for i in range(len(addresses)):
        words = carray(address_as_pointer(addresses[i]), (lengths[i],), np.uint64)  # type: ignore[call-arg]
        room[:WORDS] = np.uint64(0)  # of no words
        carried[i] = _hash_level(words, keys[0], look, room)
        blocks, level = (len(words) + BLOCK - 1) // BLOCK, 1
        while blocks > 1:
            # What is written has been read: a block takes more words than its digest.
            _hash_level(room[: WORDS * blocks], keys[level], None, room)
            blocks, level = (WORDS * blocks + BLOCK - 1) // BLOCK, level + 1
        result[i] = room[:WORDS]


@njit(cache=True, nogil=True)
def _hash_level(
    words: np.ndarray, key: np.ndarray, look: np.ndarray | None, room: np.ndarray
) -> np.uint64:
    """Write the digest of every block; return the carries of all exponents, if they are wanted.

    Numba compiles it twice: where `look` is None, without them.
    """
    low, high = key[0], key[1]
    carried = np.uint64(0)
    for block in range((len(words) + BLOCK - 1) // BLOCK):
        part = words[block * BLOCK : (block + 1) * BLOCK]
        first = second = np.uint64(0)
        for i in range(len(part)):
            word = part[i]
            half = word >> _HALF
            first += ((word + low[i]) & _LOW) * ((half + high[i]) & _LOW)
            second += ((word + low[i + 1]) & _LOW) * ((half + high[i + 1]) & _LOW)
            if look is not None:
                carried |= (word & look[0]) + look[1]
        room[WORDS * block], room[WORDS * block + 1] = first, second
    return carried

"""The majority of signs that travel as bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def sign_majority(votes: Sequence[Any]) -> Any:
    """Return the sign that most votes have in every bit: n times `(w,)` -> `(w,)` of int64 words.

    When an even number of votes tie, the first vote decides. The votes are NumPy arrays, or torch
    tensors on any device. `SignMajority` is the same on numbers: Bernstein, Zhao, Azizzadenesheli,
    Anandkumar, "signSGD with majority vote", ICLR 2019.

    >>> sign_majority([np.array([0b0011]), np.array([0b0101]), np.array([0b0110])])
    array([7])
    >>> sign_majority([np.array([0b0011]), np.array([0b0101])])
    array([3])
    """
    if len(votes) % 2 == 0:
        votes = [*votes, votes[0]]
    needed = len(votes) // 2 + 1
    digits = (needed - 1).bit_length()
    # 64 counters at a time: digit i of all of them is `counters[i]`. They begin as far below
    # 2**digits as a majority has votes; so the highest digit becomes 1 where there is one.
    start, none = 2**digits - needed, votes[0] ^ votes[0]
    counters = [~none if start >> digit & 1 else none for digit in range(digits + 1)]
    for vote in votes:
        carry = vote
        for digit, counter in enumerate(counters):
            counters[digit], carry = counter ^ carry, counter & carry
    return counters[-1]


def pack_signs(values: np.ndarray) -> np.ndarray:
    """Return the signs as words: `(n,) -> (ceil(n / 64),)`; 1 for values >= 0, with -0, else 0.

    >>> pack_signs(np.array([2.5, -1.0, -0.0, np.nan]))
    array([5])
    """
    octets = np.packbits(values >= 0, bitorder="little")
    return np.pad(octets, (0, -len(octets) % 8)).view(np.int64)


def unpack_signs(words: np.ndarray, length: int) -> np.ndarray:
    """Return the first signs of words as numbers: `(w,) -> (length,)` of 1 and -1 in float32.

    >>> unpack_signs(np.array([5]), 4).tolist()
    [1.0, -1.0, 1.0, -1.0]
    """
    bits = np.unpackbits(words.view(np.uint8), count=length, bitorder="little")
    return 2 * bits.astype(np.float32) - 1

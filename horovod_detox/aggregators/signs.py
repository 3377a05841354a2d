"""The majority of signs that travel as bits."""

from collections.abc import Sequence

from horovod_detox.arrays.namespaces import Words


def sign_majority(votes: Sequence[Words]) -> Words:
    """Return the sign that most votes have in every bit: n times `(w,)` -> `(w,)` of int64 words.

    When an even number of votes tie, the first vote decides. `SignMajority` is the same on numbers:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote", ICLR 2019.

    >>> import numpy as np
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

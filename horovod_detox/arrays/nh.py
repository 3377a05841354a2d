"""NH, a universal hash, as a tree: its definition, its key, and how likely a collision is.

A block of up to `BLOCK` words w_i of 64 bits, with halves l_i and h_i of 32 bits, has the digest

    (sum of (l_i + k_i) (h_i + m_i),  sum of (l_i + k_{i+1}) (h_i + m_{i+1}))

where the halves k_i and m_i of the key are added modulo 2^32, and the products modulo 2^64. That is
NH with two Toeplitz-shifted keys (Black, Halevi, Krawczyk, Krovetz, Rogaway, CRYPTO 1999, section
4): two different blocks of one length that were chosen without the key have the same digest with a
probability of at most 2^-64. Longer slices are hashed as a tree, the digests of all blocks being
the words of the next level, which has a key of its own, down to one digest. So two different slices
of one length have the same digest with a probability of at most `levels` times 2^-64: one level up
to 512 words, two up to 131,072, three up to 2^25, four up to 2^33.

The bound holds for keys that are random; they are derived from a secret by SHAKE-256.
"""

import hashlib

import numpy as np

BLOCK = 512
"""Words of a block: 4 KiB, so that block and key stay in the nearest cache."""
WORDS = 2
"""Words of a digest."""


class Key:
    """The keys of all levels of the tree.

    Args:
        secret: what they are derived from.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._halves = np.empty((0, 2, BLOCK + 1), np.uint64)

    def halves(self, levels: int) -> np.ndarray:
        """Return the halves of the keys, each a number: `(levels or more, 2, BLOCK + 1)`."""
        missing = range(len(self._halves), levels)
        for level in missing:
            text = hashlib.shake_256(self._secret + level.to_bytes()).digest(8 * (BLOCK + 1))
            halves = np.frombuffer(text, "<u4").reshape(1, 2, -1)
            self._halves = np.concatenate([self._halves, halves.astype(np.uint64)])
        return self._halves


def levels(words: int) -> int:
    """Return the levels of the tree over some words.

    >>> [levels(words) for words in (1, 512, 513, 131_072, 131_073)]
    [1, 1, 2, 2, 3]
    """
    blocks = -(-words // BLOCK)
    return 1 if blocks <= 1 else 1 + levels(WORDS * blocks)

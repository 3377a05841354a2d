"""Signs as bits: booleans to 64-bit words, the first in the lowest bit, and back.

`words_of_*` are `(n,) -> (ceil(n / 64),)`, `bits_of_*` are `(w,) -> (length,)`. All give the same
words, which `numpy` says most plainly. The others compute on the device of what they are given, and
know no operation that packs bits; so eight bytes of 0 or 1, an int64, are multiplied by a number
that gathers their bits in the highest byte.
"""

from typing import Any, NoReturn

import numpy as np

_GATHER = 0x0102_0408_1020_4080
"""Eight bytes of 0 or 1, times this, have their bits in the highest byte, the first lowest."""
_MASKS = (1, 2, 4, 8, 16, 32, 64, 128)
"""The bits of a byte, the first in the lowest."""


def words_of_numpy(bits: np.ndarray) -> np.ndarray:
    """Pack booleans of NumPy.

    >>> words_of_numpy(np.array([True, False, True, False]))
    array([5])
    """
    octets = np.packbits(bits, bitorder="little")
    return np.pad(octets, (0, -len(octets) % 8)).view(np.int64)


def words_of_torch(bits: Any) -> Any:
    """Pack booleans of torch."""
    import torch

    octets = torch.cat([bits, bits.new_zeros(-len(bits) % 64)]).view(torch.int64)
    return (octets * _GATHER >> 56).to(torch.uint8).view(torch.int64)


def words_of_tensorflow(bits: Any) -> Any:
    """Pack booleans of TensorFlow, eagerly or in a graph."""
    import tensorflow as tf

    padded = tf.pad(tf.cast(bits, tf.uint8), [[0, -bits.shape[0] % 64]])
    octets = tf.bitcast(tf.reshape(padded, [-1, 8]), tf.int64)
    gathered = tf.bitwise.right_shift(octets * _GATHER, tf.constant(56, tf.int64))
    return tf.bitcast(tf.reshape(tf.cast(gathered, tf.uint8), [-1, 8]), tf.int64)


def bits_of_numpy(words: np.ndarray, length: int) -> np.ndarray:
    """Return the first booleans of NumPy's words.

    >>> bits_of_numpy(np.array([5]), 4).tolist()
    [True, False, True, False]
    """
    return np.unpackbits(words.view(np.uint8), count=length, bitorder="little").view(bool)


def bits_of_torch(words: Any, length: int) -> Any:
    """Return the first booleans of torch's words."""
    import torch

    octets = words.view(torch.uint8)
    return (torch.stack([octets & mask for mask in _MASKS], 1) != 0).view(-1)[:length]


def bits_of_tensorflow(words: Any, length: int) -> Any:
    """Return the first booleans of TensorFlow's words, eagerly or in a graph."""
    import tensorflow as tf

    octets = tf.reshape(tf.bitcast(words, tf.uint8), [-1, 1])
    masks = tf.constant(_MASKS, tf.uint8)
    return tf.reshape(tf.bitwise.bitwise_and(octets, masks) != 0, [-1])[:length]


def refuse_sparse(parameter: str) -> NoReturn:
    """Refuse to send the signs of a gradient that is mostly zeros.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"the gradient of {parameter} is sparse: mostly zeros, which Compression.sign would turn "
        "into 1: use another compression"
    )

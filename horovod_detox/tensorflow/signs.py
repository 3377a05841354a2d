"""The signs of a model's gradients packed into one copy of words, 64 to a word."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from horovod_detox.tensorflow.compression import Compression
from horovod_detox.tensorflow.packing import Packing, from_words, to_words

_GATHER = 0x0102_0408_1020_4080
"""Eight bytes of 0 or 1, times this, have their bits in the highest byte, the first lowest."""


def packing_of(named: Sequence[tuple[str, Any]], compression: Any) -> "Packing | SignPacking":
    """Return how named gradients travel under a compression."""
    if compression is Compression.sign:
        return SignPacking(named)
    return Packing(named, compression)


class SignPacking:
    """Where the sign of each gradient's elements lies in the copy that is exchanged.

    Args:
        named: (name, gradient) pairs; gradients are dense and of known shape.

    Attributes:
        layout: what the words of the copy are.
    """

    def __init__(self, named: Sequence[tuple[str, Any]]) -> None:
        self._packing = Packing(named, Compression.none)
        self._segments = self._packing.layout.buffers.segments
        self.layout = self._packing.layout.signs

    def pack(self) -> tf.Tensor:
        """Return the copy: `(w,)` words of all gradients' signs, and NaN if one is not finite."""
        words = self._packing.pack()
        buffers = [from_words(words[s.start : s.stop], s) for s in self._segments]
        bits = tf.concat([Compression.sign.compress(buffer)[0] for buffer in buffers], 0)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(buffer)) for buffer in buffers])
        number = tf.where(finite, tf.zeros(1, tf.float64), float("nan"))
        return tf.concat([bits_to_words(bits), tf.bitcast(number, tf.int64)], 0)

    def unpack(self, update: tf.Tensor) -> list[tf.Tensor]:
        """Return the update, `(w,)` words, as one tensor per gradient, of 1 and -1, or NaN."""
        signs, number = self.layout.buffers.segments
        bits = words_to_bits(update[: signs.stop], signs.length)
        # Else 0, also if captured groups sent another number.
        nan = from_words(update[signs.stop :], number) * 0
        gradients, start = [], 0
        for segment in self._segments:
            part = bits[start : start + segment.length]
            values = Compression.sign.decompress(part, segment.dtype)
            gradients.append(to_words(values + tf.cast(nan, segment.dtype), segment))
            start += segment.length
        return self._packing.unpack(tf.concat(gradients, 0))


def bits_to_words(bits: Any) -> tf.Tensor:
    """Pack booleans: `(n,) -> (ceil(n / 64),)` words, the first in the lowest bit."""
    padded = tf.pad(tf.cast(bits, tf.uint8), [[0, -bits.shape[0] % 64]])
    octets = tf.bitcast(tf.reshape(padded, [-1, 8]), tf.int64)
    gathered = tf.bitwise.right_shift(octets * _GATHER, tf.constant(56, tf.int64))
    return tf.bitcast(tf.reshape(tf.cast(gathered, tf.uint8), [-1, 8]), tf.int64)


def words_to_bits(words: tf.Tensor, length: int) -> tf.Tensor:
    """Return the first booleans of words: `(w,) -> (length,)`."""
    octets = tf.reshape(tf.bitcast(words, tf.uint8), [-1, 1])
    masks = tf.constant([1, 2, 4, 8, 16, 32, 64, 128], tf.uint8)
    return tf.reshape(tf.bitwise.bitwise_and(octets, masks) != 0, [-1])[:length]

"""Gradients of TensorFlow packed into one copy of words, as they are or compressed, and back."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from horovod_detox.packing.bits import bits_of_tensorflow, words_of_tensorflow
from horovod_detox.packing.layout import WORD, Layout, Segment

NamedGradients = Sequence[tuple[str, Any]]
"""(name, gradient) pairs; gradients are dense and of known shape."""


class Uncompressed:
    """Send gradients as they are."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, None]:
        """Return the tensor."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Any, ctx: None) -> Any:
        """Return the tensor."""
        return tensor


class _Cast:
    """Send floating-point gradients in a narrower dtype."""

    wire: tf.DType

    @classmethod
    def compress(cls, tensor: Any) -> tuple[Any, Any]:
        """Return the tensor as it travels, and its dtype."""
        return tf.cast(tensor, cls.wire) if tensor.dtype.is_floating else tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        """Return the tensor in its former dtype."""
        return tf.cast(tensor, ctx)


class FP16(_Cast):
    """Send floating-point gradients as float16."""

    wire = tf.float16


class BF16(_Cast):
    """Send floating-point gradients as bfloat16."""

    wire = tf.bfloat16


class Signs:
    """Send one bit per element: whether it is >= 0, which also -0 is and NaN is not."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """Return the bits, as booleans, and the tensor's dtype."""
        return tensor >= 0, tensor.dtype

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        """Return 1 and -1 in a dtype."""
        return 2 * tf.cast(tensor, ctx) - 1


COMPRESSORS = {"none": Uncompressed, "fp16": FP16, "bf16": BF16, "sign": Signs}
"""By their names in Horovod's `Compression`, which has the first two, too."""


def packing_of(named: NamedGradients, compression: Any) -> "Packing | SignPacking":
    """Return how named gradients travel under a compression of Horovod's kind."""
    if compression is Signs:
        return SignPacking(named)
    return Packing(named, compression)


class Packing:
    """Where each gradient lies in the copy that is exchanged.

    All is done in TensorFlow operations, eagerly or in a graph, on the gradients' device.

    Args:
        named: what to pack.
        compression: of Horovod's kind: `compress` and `decompress`, element by element.

    Attributes:
        layout: what the words of the copy are, as compressed for the wire.
    """

    def __init__(self, named: NamedGradients, compression: Any) -> None:
        self._compression = compression
        self._compressed = [compression.compress(gradient) for _, gradient in named]
        for (name, gradient), (wire, _) in zip(named, self._compressed, strict=True):
            if not gradient.shape.is_fully_defined():
                raise ValueError(f"{name} has a gradient of unknown shape {gradient.shape}")
            if wire.shape != gradient.shape:
                raise ValueError(
                    f"{compression} turns the gradient of {name} of shape {gradient.shape} into "
                    f"{wire.shape}: votes are aggregated as they travel, so a compressor must keep "
                    "the shape"
                )
        self.layout = Layout(
            tuple(
                (name, tuple(gradient.shape), wire.dtype.name)
                for (name, gradient), (wire, _) in zip(named, self._compressed, strict=True)
            )
        )

    @property
    def wires(self) -> list[tf.Tensor]:
        """Return the gradients as they travel, in the order of the layout."""
        return [wire for wire, _ in self._compressed]

    def pack(self) -> tf.Tensor:
        """Return the copy: `(w,)` words of all gradients."""
        buffers = [[] for _ in self.layout.buffers.segments]
        for (wire, _), (segment, _, _) in zip(self._compressed, self.layout.places, strict=True):
            buffers[segment].append(tf.reshape(wire, [-1]))
        words = [
            to_words(tf.concat(parts, 0), segment)
            for parts, segment in zip(buffers, self.layout.buffers.segments, strict=True)
        ]
        return tf.concat(words, 0) if len(words) > 1 else words[0]

    def unpack(self, update: tf.Tensor) -> list[tf.Tensor]:
        """Return the update, `(w,)` words, as one tensor per gradient."""
        buffers = [
            from_words(update[segment.start : segment.stop], segment)
            for segment in self.layout.buffers.segments
        ]
        gradients = []
        for (_, context), (segment, start, stop), (_, shape, _) in zip(
            self._compressed, self.layout.places, self.layout.parameters, strict=True
        ):
            wire = tf.reshape(buffers[segment][start:stop], shape)
            gradients.append(self._compression.decompress(wire, context))
        return gradients


class SignPacking:
    """Where the sign of each gradient's elements lies in the copy that is exchanged.

    Args:
        named: what to pack.

    Attributes:
        layout: what the words of the copy are.
    """

    def __init__(self, named: NamedGradients) -> None:
        self._packing = Packing(named, Uncompressed)
        self._segments = self._packing.layout.buffers.segments
        self.layout = self._packing.layout.signs

    def pack(self) -> tf.Tensor:
        """Return the copy: `(w,)` words of all gradients' signs, and NaN if one is not finite."""
        words = self._packing.pack()
        buffers = [from_words(words[s.start : s.stop], s) for s in self._segments]
        bits = tf.concat([Signs.compress(buffer)[0] for buffer in buffers], 0)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(buffer)) for buffer in buffers])
        number = tf.where(finite, tf.zeros(1, tf.float64), float("nan"))
        return tf.concat([words_of_tensorflow(bits), tf.bitcast(number, tf.int64)], 0)

    def unpack(self, update: tf.Tensor) -> list[tf.Tensor]:
        """Return the update, `(w,)` words, as one tensor per gradient, of 1 and -1, or NaN."""
        signs, number = self.layout.buffers.segments
        bits = bits_of_tensorflow(update[: signs.stop], signs.length)
        # Else 0, also if captured groups sent another number.
        nan = from_words(update[signs.stop :], number) * 0
        gradients, start = [], 0
        for segment in self._segments:
            part = bits[start : start + segment.length]
            values = Signs.decompress(part, segment.dtype)
            gradients.append(to_words(values + tf.cast(nan, segment.dtype), segment))
            start += segment.length
        return self._packing.unpack(tf.concat(gradients, 0))


def to_words(buffer: tf.Tensor, segment: Segment) -> tf.Tensor:
    """Reinterpret a flat buffer as words, with zeros after its end: `(length,) -> (words,)`."""
    per_word = WORD // buffer.dtype.size
    padding = (segment.stop - segment.start) * per_word - segment.length
    if padding:
        buffer = tf.pad(buffer, [[0, padding]])
    if per_word == 1:
        return tf.bitcast(buffer, tf.int64)
    return tf.bitcast(tf.reshape(buffer, [-1, per_word]), tf.int64)


def from_words(words: tf.Tensor, segment: Segment) -> tf.Tensor:
    """Reinterpret words as a flat buffer: `(words,) -> (length,)`."""
    buffer = tf.reshape(tf.bitcast(words, segment.dtype), [-1])
    return buffer[: segment.length]

"""The gradients of a model packed into one copy of words, and the update unpacked from it."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from horovod_detox.layout import WORD, Layout, Segment


class Packing:
    """Where each gradient lies in the copy that is exchanged.

    All is done in TensorFlow operations, eagerly or in a graph, on the gradients' device.

    Args:
        named: (name, gradient) pairs; gradients are dense and of known shape.
        compression: of Horovod's kind: `compress` and `decompress`, element by element.

    Attributes:
        layout: what the words of the copy are, as compressed for the wire.
    """

    def __init__(self, named: Sequence[tuple[str, Any]], compression: Any) -> None:
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

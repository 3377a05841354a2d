"""What gradients travel as: Horovod's compressors and ours."""

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf


class BF16Compressor:
    """Send floating-point gradients as bfloat16."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """Return the tensor as bfloat16, and its dtype."""
        wire = tf.cast(tensor, tf.bfloat16) if tensor.dtype.is_floating else tensor
        return wire, tensor.dtype

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        """Return the tensor in its former dtype."""
        return tf.cast(tensor, ctx)


class SignCompressor:
    """Send one bit per element: whether it is >= 0, which also -0 is and NaN is not."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """Return the bits, as booleans, and the tensor's dtype."""
        return tensor >= 0, tensor.dtype

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        """Return 1 and -1 in a dtype."""
        return 2 * tf.cast(tensor, ctx) - 1


class Compression(hvd.Compression):
    """Compressors of gradients, for `compression=`.

    Attributes:
        none, fp16, bf16: votes are aggregated in float32, whatever they travel as.
        sign: one bit per element, for `Detox(outer="sign_majority")` only. The update is 1 or -1
            everywhere: 1 where the majority's gradient is 0.
    """

    bf16: Any = BF16Compressor
    sign: Any = SignCompressor

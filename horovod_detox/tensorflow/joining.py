"""Horovod's join: ranks whose data end earlier than those of others."""

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_detox.tensorflow.context import context


def join() -> tf.Tensor:
    """Wait until all ranks have joined; return the last of them.

    Until then the others go on. A group most of whose members have joined has no vote in their
    exchanges; this does not count as a fault.

    Raises:
        ValueError: with a tolerance.
        RuntimeError: in a tf.function.
    """
    if not tf.executing_eagerly():
        raise RuntimeError("call hvd.join() outside of tf.function: inside one it would not wait")
    return tf.constant(context.join(lambda: int(hvd.join())))

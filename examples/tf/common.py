"""What the TensorFlow examples share: the job, and plain averaging with lies."""

import hashlib
import sys
from itertools import count
from pathlib import Path
from typing import Any

import horovod.tensorflow
import keras
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox.attacks import Attack, FaultyRank
from horovod_detox.vote.groups import Groups

sys.path.append(str(Path(__file__).parents[1]))  # for what the examples of all frameworks share
from comparison import Job, Run, flags

__all__ = ["Run", "flags", "job", "plain_average", "weights_digest"]


def plain_average(
    gradients: list[Any], attack: Attack | None, rank: int, groups: Groups
) -> list[Any]:
    """Average gradients over the ranks by Horovod's allreduce, after this rank has lied or not.

    Horovod's own optimizer and tape do not work with Keras 3; its allreduce does. The attack acts
    on each gradient by itself. Call this once, in a tf.function.
    """
    if attack is not None:
        if attack.omniscient:
            sys.exit(f"{type(attack).__name__} must see all gradients: plain Horovod shows it none")
        gradients = [_lie(gradient, FaultyRank(attack, rank, groups)) for gradient in gradients]
    return [
        horovod.tensorflow.allreduce(gradient, name=f"gradient.{i}", op=hvd.Average)
        for i, gradient in enumerate(gradients)
    ]


def _lie(gradient: Any, liar: FaultyRank) -> Any:
    steps = count()

    def corrupt(copy: Any) -> Any:
        return liar.corrupt(next(steps), copy.flatten()).reshape(copy.shape)

    lie: Any = tf.numpy_function(corrupt, [gradient], gradient.dtype)
    return tf.ensure_shape(lie, gradient.shape)


def weights_digest(model: keras.Model) -> str:
    """Return a digest of the bits of all weights that are trained.

    The others do not count: BatchNorm's statistics are those of a group's own batches.
    """
    digest = hashlib.blake2b(digest_size=16)
    for variable in model.trainable_variables:
        digest.update(f"{variable.dtype} {tuple(variable.shape)}".encode())
        weights: Any = keras.ops.convert_to_numpy(variable)
        digest.update(weights.tobytes())
    return digest.hexdigest()


job = Job(hvd, weights_digest)

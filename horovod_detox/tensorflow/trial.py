"""A gradient that all ranks compute from one batch, with TensorFlow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from tensorflow.python.eager import context as eager
from tensorflow.python.ops import stateful_random_ops

from horovod_detox.preflight import PreflightReport, Trial
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.gradients import name_of
from horovod_detox.tensorflow.settings import settings
from horovod_detox.tensorflow.variables import native
from horovod_detox.trial import SEED, Piece, compare_trials, digest, from_first_rank, seeded


def preflight(
    model: Any, batch: Any, loss: Callable[[Any, Any], Any] | None = None
) -> PreflightReport:
    """Let every rank compute the gradient of rank 0's batch, twice, and compare the bits.

    All ranks call it, eagerly, after `init` and `broadcast_variables`. The gradient is computed
    with rank 0's variables that are not trained and the same random state everywhere; a Keras model
    is called with `training=True`. Nothing changes: trained variables and the optimizer are not
    touched, other variables and the random state are as before.

    Args:
        model: a Keras model that has its weights, or a `tf.Module` that can be called.
        batch: `(inputs, targets)` for a `loss`, else the inputs, in the structure in which the
            model takes them; all ranks give as many tensors, or NumPy arrays.
        loss: `loss(targets, outputs)`; None: the sum of the outputs' squares.

    Returns:
        the same report on every rank: its `str()` is the verdict, `table()` the settings that
        differ, `is_deterministic` whether the job is fit for votes.

    Raises:
        RankFailed: where another rank could not compute the gradient.
    """
    collectives = context.collectives("detox.preflight")
    plan = context.session().plan()
    arrays = map(_piece, tf.nest.flatten(batch))
    received = map(_tensor, from_first_rank(collectives, "batch", list(arrays)))
    common = tf.nest.pack_sequence_as(batch, list(received))
    variables = [native(variable) for variable in model.trainable_variables]
    untrained = [native(variable) for variable in model.non_trainable_variables]
    state = from_first_rank(collectives, "variables", [_piece(v) for v in untrained])
    names = [name_of(v, i) for i, v in enumerate(model.trainable_variables)]

    def gradients() -> dict[str, str]:
        with _unchanged(untrained), _seeded():
            for variable, piece in zip(untrained, state, strict=True):
                variable.assign(_tensor(piece))
            found = _gradients(model, variables, common, loss)
        return dict(zip(names, found, strict=True))

    def trial() -> Trial:
        if not variables:
            raise ValueError("the model has no weights to train: build it, or call it once")
        digests = [digest(_piece(variable)[2]) for variable in variables]
        weights = dict(zip(names, digests, strict=True))
        return Trial(settings(), weights, gradients(), gradients())

    return compare_trials(collectives, plan.groups if plan else None, trial)


def _gradients(model: Any, variables: list[tf.Variable], batch: Any, loss: Any) -> list[str]:
    """Return the digest of each variable's gradient."""
    inputs, targets = (batch, None) if loss is None else batch
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=True) if _is_keras(model) else model(inputs)
        value = _sum_of_squares(outputs) if loss is None else loss(targets, outputs)
    gradients = tape.gradient(value, variables)
    nothing = np.empty(0, np.float32)
    return [
        digest(_piece(nothing if gradient is None else tf.convert_to_tensor(gradient))[2])
        for gradient in gradients
    ]


def _is_keras(model: Any) -> bool:
    return isinstance(model, keras.layers.Layer)


def _sum_of_squares(outputs: Any) -> Any:
    return tf.add_n(
        [tf.reduce_sum(tf.cast(output, tf.float32) ** 2) for output in tf.nest.flatten(outputs)]
    )


@contextmanager
def _unchanged(variables: list[tf.Variable]) -> Iterator[None]:
    """Leave variables as they were."""
    saved = [tf.identity(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)


@contextmanager
def _seeded() -> Iterator[None]:
    """Compute from a common random state; the process's own is as before.

    TensorFlow has no public way to read its seed and the generators of its eager operations.
    """
    process, names = eager.context(), ("_seed", "_rng")
    former = {name: getattr(process, name) for name in names if hasattr(process, name)}
    generator = stateful_random_ops.global_generator
    of_keras = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    with seeded():
        tf.random.set_seed(SEED)
        stateful_random_ops.global_generator = tf.random.Generator.from_seed(SEED)
        global_state.set_global_attribute(
            GLOBAL_SEED_GENERATOR, keras.random.SeedGenerator(SEED, name="preflight")
        )
        try:
            yield
        finally:
            for name in names:
                vars(process).pop(name, None)
            vars(process).update(former)
            stateful_random_ops.global_generator = generator
            global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, of_keras)


def _piece(tensor: Any) -> Piece:
    array = np.ascontiguousarray(tensor)
    if array.dtype.hasobject:
        raise ValueError("text cannot be compared: give the model's numeric inputs")
    return array.dtype.name, np.shape(tensor), array.reshape(-1).view(np.uint8)


def _tensor(piece: Piece) -> tf.Tensor:
    dtype, shape, data = piece
    return tf.constant(data.view(np.dtype(dtype)).reshape(tuple(shape)))

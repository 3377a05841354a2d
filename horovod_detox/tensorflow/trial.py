"""The trial with TensorFlow: a gradient that all ranks compute from one batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from tensorflow.python.eager import context as eager
from tensorflow.python.ops import stateful_random_ops

from horovod_detox.determinism.trial import SEED, Named, Piece, try_out
from horovod_detox.determinism.verdict import PreflightReport
from horovod_detox.tensorflow.conditions import conditions
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.variables import name_of, native


def preflight(
    model: Any, batch: Any, loss: Callable[[Any, Any], Any] | None = None
) -> PreflightReport:
    """Let every rank compute the gradient of rank 0's batch, twice, and compare the bits.

    All ranks call it, eagerly, after `init` and `broadcast_variables`. The gradient is computed
    with rank 0's variables that are not trained and the same random state everywhere; a Keras model
    is called with `training=True`. Nothing changes: trained variables and the optimizer are not
    touched, other variables and the random state are as before. The report's `str()` is the
    verdict, `table()` has the settings that differ, and `is_deterministic` says whether the job can
    use votes.

    Args:
        model: a Keras model that has its weights, or a `tf.Module` that can be called.
        batch: `(inputs, targets)` for a `loss`, else the inputs, in the structure in which the
            model takes them; all ranks give as many tensors, or NumPy arrays.
        loss: `loss(targets, outputs)`; None: the sum of the outputs' squares.

    Returns:
        the report, the same on every rank.

    Raises:
        RankFailed: where another rank could not compute the gradient.
    """
    plan = context.session().plan()
    collectives = context.collectives("detox.preflight")
    return try_out(collectives, plan.groups if plan else None, _Subject(model, batch, loss))


def checkup() -> PreflightReport:
    """Try out a small network that needs the usual kernels, on a GPU if there is one."""
    if gpus := tf.config.list_physical_devices("GPU"):
        tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")
    rng = np.random.default_rng(SEED)
    model = network()
    model.set_weights([rng.uniform(0, 0.1, weight.shape) for weight in model.get_weights()])
    return preflight(model, rng.normal(size=(32, 16, 16, 3)).astype(np.float32))


def network() -> keras.Model:
    """Return a network with convolutions, batch normalisation and matrix products."""
    return keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


class _Subject:
    """A model, a batch and a loss of TensorFlow: a `determinism.trial.Subject`."""

    def __init__(self, model: Any, batch: Any, loss: Any) -> None:
        self._model, self._batch, self._loss = model, batch, loss
        trained = model.trainable_variables
        self._names = [name_of(variable, i) for i, variable in enumerate(trained)]
        self._variables = [native(variable) for variable in trained]
        self._untrained = [native(variable) for variable in model.non_trainable_variables]
        self.batch = [_piece(tensor) for tensor in tf.nest.flatten(batch)]
        self.state = [_piece(variable) for variable in self._untrained]

    def conditions(self) -> dict[str, str]:
        return conditions()

    def weights(self) -> Iterator[Named]:
        if not self._variables:
            raise ValueError("the model has no weights to train: build it, or call it once")
        yield from zip(self._names, map(_bytes, self._variables), strict=True)

    def gradients(self, batch: Sequence[Piece], state: Sequence[Piece]) -> Iterator[Named]:
        common = tf.nest.pack_sequence_as(self._batch, [_tensor(piece) for piece in batch])
        with _unchanged(self._untrained), _seeded():
            for variable, piece in zip(self._untrained, state, strict=True):
                variable.assign(_tensor(piece))
            yield from zip(self._names, self._computed(common), strict=True)

    def _computed(self, batch: Any) -> Iterator[np.ndarray]:
        """Yield the bytes of each variable's gradient."""
        inputs, targets = (batch, None) if self._loss is None else batch
        model = self._model
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True) if _is_keras(model) else model(inputs)
            value = _sum_of_squares(outputs) if self._loss is None else self._loss(targets, outputs)
        for gradient in tape.gradient(value, self._variables):
            nothing = gradient is None
            yield np.empty(0, np.uint8) if nothing else _bytes(tf.convert_to_tensor(gradient))


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


def _bytes(tensor: Any) -> np.ndarray:
    return _piece(tensor)[2]


def _piece(tensor: Any) -> Piece:
    array = np.ascontiguousarray(tensor)
    if array.dtype.hasobject:
        raise ValueError("text cannot be compared: give the model's numeric inputs")
    return array.dtype.name, np.shape(tensor), array.reshape(-1).view(np.uint8)


def _tensor(piece: Piece) -> tf.Tensor:
    dtype, shape, data = piece
    return tf.constant(data.view(np.dtype(dtype)).reshape(tuple(shape)))

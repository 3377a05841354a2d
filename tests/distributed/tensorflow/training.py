"""A small training job in all the ways in which TensorFlow trains, the same in every test."""

import hashlib
import types

import keras
import numpy as np
import tensorflow as tf

import horovod_detox.tensorflow as hvd

BATCH = 16
STEPS = 10
loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def model(seed: int = 0) -> keras.Model:
    """Return a network with the same initial weights on every rank."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.layers.Input((5,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )


def batches(steps: int, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples of a shard, `(steps * BATCH, 5)`, and their labels."""
    rng = np.random.default_rng(shard)
    inputs = rng.standard_normal((steps * BATCH, 5)).astype(np.float32)
    return inputs, (inputs[:, :3] + 0.1 * inputs[:, 2:]).argmax(axis=1)


def fit(optimizer, steps: int, shard: int, network=None, **compile_options):
    """Train by `model.fit`; return the model."""
    network = network or model()
    network.compile(optimizer, loss_function, **compile_options)
    network.fit(*batches(steps, shard), batch_size=BATCH, shuffle=False, verbose=0)
    return network


def _loop(optimizer, steps: int, shard: int, network, wrap, function: bool):
    """Train by a tape that `wrap` may distribute, and an optimizer."""
    network = network or model()

    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = loss_function(labels, network(inputs))
        gradients = wrap(tape).gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))

    step = tf.function(step) if function else step
    data = tf.data.Dataset.from_tensor_slices(batches(steps, shard)).batch(BATCH)
    for inputs, labels in data:
        step(inputs, labels)
    return network


def _fit(function: bool):
    return lambda optimizer, steps, shard, **options: fit(
        hvd.DistributedOptimizer(optimizer, **options), steps, shard, run_eagerly=not function
    )


def _optimizer(function: bool):
    return lambda optimizer, steps, shard, **options: _loop(
        hvd.DistributedOptimizer(optimizer, **options),
        steps,
        shard,
        None,
        lambda tape: tape,
        function,
    )


def _tape(function: bool):
    return lambda optimizer, steps, shard, **options: _loop(
        optimizer,
        steps,
        shard,
        None,
        lambda tape: hvd.DistributedGradientTape(tape, **options),
        function,
    )


def regress(optimizer, steps: int, shard: int, **options):
    """Fit a linear function by a tape, with little of Keras, fast."""
    weights, bias = tf.Variable(tf.zeros((5, 3))), tf.Variable(tf.zeros(3))
    inputs, labels = map(tf.constant, batches(steps, shard))
    targets = tf.one_hot(labels, 3)
    for step in range(steps):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        with tf.GradientTape() as tape:
            error = inputs[rows] @ weights + bias - targets[rows]
            loss = tf.reduce_mean(error**2)
        tape = hvd.DistributedGradientTape(tape, **options)
        optimizer.apply(tape.gradient(loss, [weights, bias]), [weights, bias])
    return types.SimpleNamespace(weights=[weights, bias])


WAYS = {
    "fit": _fit(True),
    "fit_eagerly": _fit(False),
    "optimizer_in_function": _optimizer(True),
    "optimizer_eagerly": _optimizer(False),
    "tape_in_function": _tape(True),
    "tape_eagerly": _tape(False),
    "regress": regress,
}
"""Ways to train: `way(optimizer, steps, shard, **options of the distribution) -> model`."""


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def adam():
    return keras.optimizers.Adam(0.01)


def train(make_optimizer=sgd, steps=STEPS, way="fit", shard=None, **options):
    """Train on the batches of this rank's group; return the model."""
    return WAYS[way](make_optimizer(), steps, hvd.group() if shard is None else shard, **options)


def digest(network) -> str:
    """Return a digest of the bits of all weights."""
    return hashlib.sha256(b"".join(np.asarray(w).tobytes() for w in network.weights)).hexdigest()


def everywhere(value) -> list:
    """Return the value of every rank."""
    return hvd.allgather_object(value, name="everywhere")

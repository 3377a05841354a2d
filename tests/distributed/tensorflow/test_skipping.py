"""A step without an update changes nothing on any rank, and the training goes on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox.exchange.step import NoMajority
from tests.distributed.tensorflow.training import BATCH, batches, loss_function, model

pytestmark = pytest.mark.ranks(4)

LOST = (1, 2)


class DisturbedLayer(keras.layers.Layer):
    """The identity, whose gradient both members of every pair see otherwise in some calls."""

    def __init__(self, lost=LOST):
        super().__init__()
        self.calls = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.lost = tf.constant(lost or [-1], tf.int64)

    def call(self, inputs):
        step = self.calls.assign_add(1) - 1
        is_lost = tf.reduce_any(self.lost == step)
        factor = tf.where(is_lost, 1.0 + hvd.rank(), 1.0)

        @tf.custom_gradient
        def disturbed(x):
            return tf.identity(x), lambda upstream: upstream * factor

        return disturbed(inputs)


def optimizers():
    """Return what keeps much state, and what it makes of it."""
    return {
        "momentum": keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
        "adam": keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=2),
        "scaled": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), 4.0),
        "clipped": keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5), global_clipnorm=1.0
        ),
    }


class Kept(keras.callbacks.Callback):
    """Keeps the weights and the optimizer's variables of every step."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(bits_of(self.model))


def bits_of(network):
    """Return the bits of the weights, and of all variables of the optimizer but the scale's."""
    inner = getattr(network.optimizer, "inner_optimizer", network.optimizer)
    variables = [*network.trainable_variables, *inner.variables]
    return [variable.value.numpy().tobytes() for variable in variables]


def network_of(lost=LOST):
    inner = model()
    return keras.Sequential([keras.layers.Input((5,)), inner, DisturbedLayer(lost)])


@pytest.mark.parametrize(
    ("name", "eagerly"),
    [
        ("adam", False),
        ("scaled", False),
        ("scaled", True),
        pytest.param("momentum", False, marks=pytest.mark.soak),
        pytest.param("clipped", False, marks=pytest.mark.soak),
        pytest.param("adam", True, marks=pytest.mark.soak),
    ],
)
def test_fit_leaves_weights_and_state(start, name, eagerly):
    start(group_size=2, outer="mean")
    network, kept = network_of(), Kept()
    network.compile(
        hvd.DistributedOptimizer(optimizers()[name]), loss_function, run_eagerly=eagerly
    )
    inputs, labels = batches(5, hvd.group())
    network.fit(inputs, labels, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[kept])
    found = kept.found
    assert found[0] == found[1] == found[2] != found[3]
    report = hvd.fault_report()
    assert (report.steps, report.skipped) == (5, 2)
    assert report.abstentions == dict.fromkeys(range(hvd.num_groups()), 2)
    # The steps that counted are those of a job that never lost a vote.
    start(group_size=2, outer="mean")
    fair, kept = network_of(lost=()), Kept()
    fair.compile(hvd.DistributedOptimizer(optimizers()[name]), loss_function, run_eagerly=eagerly)
    counted = np.arange(5 * BATCH).reshape(5, BATCH)[[0, 3, 4]].ravel()
    fair.fit(
        inputs[counted],
        labels[counted],
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[kept],
    )
    assert kept.found == [found[i] for i in (0, 3, 4)]


@pytest.mark.parametrize("function", [False, True])
def test_apply_gradients_leaves_weights_and_state(start, function):
    start(group_size=2, outer="mean")
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0, momentum=0.5))
    variable = tf.Variable([0.0, 0.0])

    def step(gradient):
        optimizer.apply_gradients([(gradient, variable)])

    step = tf.function(step) if function else step
    values = []
    for i in range(4):
        step(tf.constant([1.0, 1.0 + hvd.rank() * (i in LOST)]))
        values.append((variable.numpy().tolist(), int(optimizer.iterations)))
    assert values == [([-1, -1], 1)] * 3 + [([-2.5, -2.5], 2)]


def test_a_skipped_step_forgets_what_was_accumulated_for_it(start):
    start(group_size=2, outer="mean")
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), backward_passes_per_step=2)
    variable = tf.Variable([0.0])

    @tf.function
    def step(gradient):
        optimizer.apply([gradient], [variable])

    values = []
    for i in range(8):
        step(tf.constant([1.0 + hvd.rank() * (i == 2)]))
        values.append(float(variable[0]))
    assert values == [0, -2, -2, -2, -2, -4, -4, -6]
    assert hvd.fault_report().skipped == 1


def test_a_tape_raises_at_once(start):
    start(group_size=2, outer="mean")
    variable = tf.Variable([1.0])

    def gradient(factor):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable * factor)
        return hvd.DistributedGradientTape(tape).gradient(loss, variable)

    assert gradient(1.0).numpy() == [1.0]
    with pytest.raises(NoMajority, match="every group lost its majority"):
        gradient(1.0 + hvd.rank())
    assert gradient(2.0).numpy() == [2.0]
    assert hvd.fault_report().skipped == 0


def test_an_optimizer_of_tensorflow_1_raises_at_once(start):
    start(group_size=2, outer="mean")
    optimizer = hvd.DistributedOptimizer(tf.compat.v1.train.GradientDescentOptimizer(1.0))
    variable = tf.Variable([1.0])
    for factor, fails in ((1.0, False), (1.0 + hvd.rank(), True)):
        loss = lambda factor=factor: tf.reduce_sum(variable * factor)  # noqa: E731
        if fails:
            with pytest.raises(NoMajority, match="every group lost its majority"):
                optimizer.compute_gradients(loss, [variable])
        else:
            optimizer.compute_gradients(loss, [variable])


def test_after_as_many_as_are_allowed_all_ranks_end(start):
    start(group_size=2, outer="mean", max_skipped_steps=1)
    network = network_of()
    network.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), loss_function)
    inputs, labels = batches(5, hvd.group())
    with pytest.raises(NoMajority, match=r"max_skipped_steps=1\) skips no more in a row"):
        network.fit(inputs, labels, batch_size=BATCH, shuffle=False, verbose=0)
    assert hvd.fault_report().skipped == 1

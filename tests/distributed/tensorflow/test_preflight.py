"""A preflight on real ranks with TensorFlow, and a job that is refused in its first step."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.keras
import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras
from horovod_detox.determinism.first_step import NotDeterministic
from horovod_detox.tensorflow.conditions import CONDITIONS
from tests.distributed.tensorflow.training import everywhere, sgd

pytestmark = pytest.mark.ranks(4)
loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Noise(keras.layers.Layer):
    """Draw numbers of all kinds."""

    def call(self, inputs):
        eager = tf.random.uniform([]) + tf.random.get_global_generator().uniform([])
        return inputs * (eager + random.random() + np.random.random() + keras.random.uniform([]))


def network():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 2)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            Noise(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def batch():
    """Return a batch of this rank's own."""
    rng = np.random.default_rng(hvd.rank())
    return rng.normal(size=(16, 8, 8, 2)).astype(np.float32), rng.integers(5, size=16)


def draw():
    """Return numbers of all kinds, and the states of python and NumPy."""
    _, words, *place = np.random.get_state()
    numbers = [tf.random.uniform([2]), keras.random.uniform([2])]
    return [n.numpy().tolist() for n in numbers], random.getstate(), words.tobytes(), place


def bits(model):
    return [np.asarray(variable).tobytes() for variable in model.variables]


def test_equal_ranks_are_deterministic_and_nothing_changes(start):
    start(group_size=2)
    model = network()
    keras.utils.set_random_seed(7 + hvd.rank())
    expected = draw()
    keras.utils.set_random_seed(7 + hvd.rank())
    model.non_trainable_variables[0].assign(np.full(4, hvd.rank()))  # moving means may differ
    before = bits(model)
    report = hvd.preflight(model, batch(), loss_function)
    assert str(report) == "deterministic: 4 ranks computed the same bits"
    assert (bits(model), draw()) == (before, expected)
    assert report.conditions[0]["intra-op threads"] == "1"
    assert everywhere(report) == [report] * 4
    assert hvd.preflight(model, batch()[0]).is_deterministic
    model.trainable_variables[0].assign_add(np.full((3, 3, 2, 4), hvd.rank() == 2))
    report = horovod_detox.keras.preflight(model, batch()[0])
    assert "at tensor 0 sequential/conv2d/kernel: broadcast them first" in str(report)
    assert horovod_detox.tensorflow.keras.preflight is hvd.preflight


@pytest.mark.parametrize("disguised", [False, True])
def test_a_corrupted_rank_is_found_and_named(start, monkeypatch, disguised):
    """With the settings of the others it is faulty, else the job is not deterministic."""
    start(group_size=4)
    if disguised and hvd.rank() == 3:
        monkeypatch.setitem(CONDITIONS, "intra-op threads", lambda: 2)
    weights = tf.Variable(tf.ones((2, 3)), name="weights")

    class Corrupted(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = weights

        def __call__(self, inputs):
            return tf.matmul(inputs, self.weights * (1 + (hvd.rank() == 3)))

    report = hvd.preflight(Corrupted(), tf.ones((4, 2)))
    assert str(report) == (
        "rank 3 faulty at tensor 0 weights: it alone differs, and has intra-op threads 2 against 1"
        if disguised
        else "rank 3 faulty at tensor 0 weights: it alone differs, with the settings of the others"
    )


def test_a_job_with_other_threads_is_refused_in_its_first_step(start, monkeypatch):
    start(group_size=4)
    if hvd.rank() in (1, 2):
        monkeypatch.setitem(CONDITIONS, "intra-op threads", lambda: 2)
    variable = tf.Variable([0.0])
    optimizer = hvd.DistributedOptimizer(sgd())
    with pytest.raises(NotDeterministic, match="1, 2 differ: intra-op threads 2 against 1"):
        optimizer.apply([tf.fill([1], float(hvd.rank() in (1, 2)))], [variable])
    assert hvd.fault_report().dissents == {}

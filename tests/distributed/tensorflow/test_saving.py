"""What is saved with a wrong bit loses its name, or is healed before; all ranks are told."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from horovod_detox.tensorflow.saving import files

from .held import flip, network, weight_named
from .training import everywhere

pytestmark = pytest.mark.ranks(6)


def test_what_is_saved_at_the_end_of_an_epoch_is_healed_before(start):
    start(group_size=3, outer="mean", scrub_every=0)
    keras.utils.set_random_seed(3)
    model, saved = network(), []

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3 and hvd.rank() == 0:  # after the last step of the epoch
                flip(weight_named(model, "moving_mean"))

        def on_epoch_end(self, epoch, logs=None):
            saved.append(weight_named(model, "moving_mean").numpy().tolist())

    hvd.broadcast_variables(model.variables, root_rank=0)
    hvd.seed_group(5, model)
    model.compile(hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    inputs = np.arange(64, dtype=np.int32).reshape(32, 2) % 7
    model.fit(inputs, np.zeros((32, 3)), 8, 2, verbose=0, shuffle=False, callbacks=[Save()])
    assert everywhere(saved) == [saved] * hvd.size()
    assert hvd.fault_report().healed == {0: 2}


SAVERS = {
    "weights.weights.h5": lambda model, path: model.save_weights(path),
    "model.keras": lambda model, path: model.save(path),
    "checkpoint.index": lambda model, path: tf.train.Checkpoint(model=model).write(
        path.removesuffix(".index")
    ),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras, with h5
@pytest.mark.parametrize("name", SAVERS)
def test_what_is_compared_with_nobody_is_told_at_the_end(start, tmp_path, caplog, name):
    start(group_size=3, outer="mean")
    model, other = network(), keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    hvd.broadcast_variables(model.variables, root_rank=0)
    hvd.seed_group(5, model)
    optimizer = hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1))
    told = []

    def look(model, label):
        if hvd.rank() == 0:
            SAVERS[name](model, str(tmp_path / f"{label} {name}"))
        caplog.clear()
        files._tell_of_late()
        told.append(f"{label} {name}" in caplog.text)

    for _ in range(2):
        optimizer.apply(
            [tf.ones(v.shape) for v in model.trainable_variables], model.trainable_variables
        )
        look(other, "other")
        look(model, "first")
    hvd.scrub()
    look(model, "second")
    assert everywhere(told) == [[False, True] * 2 + [False]] + [[False] * 5] * (hvd.size() - 1)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras, with h5
@pytest.mark.parametrize("name", SAVERS)
def test_what_is_saved_with_a_flipped_bit_loses_its_name(start, tmp_path, name):
    """In the midst of an epoch, by rank 0 alone: the next exchange finds it out."""
    start(group_size=3, outer="mean", scrub_every=0)
    keras.utils.set_random_seed(3)
    model = network()

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch in (1, 3) and hvd.rank() == 0:
                if batch == 3:
                    flip(weight_named(model, "moving_mean"))
                SAVERS[name](model, str(tmp_path / f"{batch} {name}"))

    hvd.broadcast_variables(model.variables, root_rank=0)
    hvd.seed_group(5, model)
    model.compile(hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    inputs = np.arange(96, dtype=np.int32).reshape(48, 2) % 7
    model.fit(inputs, np.zeros((48, 3)), 8, verbose=0, shuffle=False, callbacks=[Save()])
    found = {file for file in os.listdir(tmp_path) if "data-0" not in file}
    expected = {f"1 {name}", f"3 {name}.wrong"} if hvd.rank() == 0 else set()
    assert found == expected
    (event,) = hvd.fault_report().events
    assert (event.kind, event.ranks, event.cause.is_healed) == ("drift", (0,), True)
    assert event.cause.files == (everywhere(f"{tmp_path}/3 {name}.wrong")[0],)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras, with h5
def test_what_is_saved_at_the_end_of_the_last_epoch_is_compared(start, tmp_path):
    start(group_size=3, outer="mean", scrub_every=0)
    keras.utils.set_random_seed(3)
    model = network()

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if hvd.rank() == 0:
                flip(model.trainable_variables[0], index=55)  # after the comparison of this epoch
                model.save_weights(tmp_path / f"{epoch}.weights.h5")

    hvd.broadcast_variables(model.variables, root_rank=0)
    hvd.seed_group(5, model)
    model.compile(hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    inputs = np.arange(64, dtype=np.int32).reshape(32, 2) % 7
    model.fit(inputs, np.zeros((32, 3)), 8, 2, verbose=0, shuffle=False, callbacks=[Save()])
    found = ["0.weights.h5.wrong", "1.weights.h5.wrong"] if hvd.rank() == 0 else []
    assert sorted(os.listdir(tmp_path)) == found
    assert hvd.fault_report().healed == {0: 2}

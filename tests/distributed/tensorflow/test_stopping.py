"""Callbacks that stop a training, or decide by metrics: all ranks do the same, or say so."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from tests.distributed.tensorflow.training import BATCH, batches, digest, everywhere, model, sgd

pytestmark = pytest.mark.ranks(4)

GROUPS_OF_2 = {"group_size": 2, "outer": "mean"}  # (0, 2) and (1, 3)
ALL = (0, 1, 2, 3)


class StopAt(keras.callbacks.Callback):
    """Sets `stop_training` on some ranks, after a batch of an epoch or at the end of an epoch."""

    def __init__(self, ranks=ALL, epoch=0, batch=None):
        super().__init__()
        self.here, self.epoch, self.batch = hvd.rank() in ranks, epoch, batch
        self.now, self.batches = 0, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.here and (self.now, batch) == (self.epoch, self.batch):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if self.here and self.batch is None and epoch == self.epoch:
            self.model.stop_training = True


def compiled(**options):
    network = model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(hvdk.DistributedOptimizer(sgd()), loss, **options)
    return network


def fit(network, *callbacks, epochs=3, steps=6, **options):
    """Train on this group's batches; return the number of epochs."""
    history = network.fit(
        *batches(steps, hvd.group()),
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )
    return len(history.epoch)


CASES = [
    ({"batch": 2}, 1, 4),  # all have heard it one batch later
    ({"ranks": (0, 2, 3), "batch": 2}, 3, 18),  # one of two groups is not most of them
    ({"ranks": (2,), "batch": 2}, 3, 18),
    ({"batch": 5}, 1, 6),  # the last of its epoch
    ({"epoch": 1}, 2, 12),
    ({"ranks": (1,), "epoch": 1}, 3, 18),
]
"""Who wants to stop and when; the epochs and batches that all ranks train."""


def test_most_ranks_of_most_groups_stop_a_training(start, caplog):
    start(**GROUPS_OF_2)
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    network = compiled()
    for stop, epochs, trained in CASES:
        caplog.clear()
        callback = StopAt(**stop)
        done = fit(network, callback), callback.batches, digest(network)
        assert everywhere(done) == [(epochs, trained, done[2])] * 4, stop
        ours = [each.message for each in caplog.records if each.name == "horovod_detox"]
        told = [text.partition(" set model.stop_training")[0] for text in ours]
        in_vain = [f"ranks {[*stop['ranks']]}"] if "ranks" in stop else []
        assert told == (in_vain if hvd.rank() == 0 else []), stop


def test_wishes_with_several_steps_per_execution_and_accumulation(start):
    start(**GROUPS_OF_2)
    callback, network = StopAt(batch=3), compiled(steps_per_execution=2)
    fit(network, callback, steps=8)
    assert int(network.optimizer.iterations) == 6
    # The next exchange after batch 2 is that of batch 3: only every second batch has one.
    network = model()
    optimizer = hvdk.DistributedOptimizer(sgd(), backward_passes_per_step=2)
    network.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = StopAt(batch=1)
    fit(network, callback, steps=8)
    assert everywhere(callback.batches) == [4] * 4


def test_a_masked_nan_ends_nothing(start, caplog):
    """The gradient of the one rank with a NaN is outvoted; its loss is its own."""
    start(group_size=4)
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    trained = []
    for faulty in (None, 2):
        inputs, labels = batches(6, 0)
        if hvd.rank() == faulty:
            inputs[BATCH + 3] = np.nan
        network = compiled()
        history = network.fit(
            inputs,
            labels,
            batch_size=BATCH,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.TerminateOnNaN()],
        )
        trained.append((len(history.epoch), digest(network)))
    assert everywhere(trained) == [[trained[0]] * 2] * 4
    assert trained[0][0] == 2
    assert hvd.fault_report().dissents == {2: 2}
    if hvd.rank() == 0:
        assert [text for text in caplog.messages if "stop_training" in text] == [
            "ranks [2] set model.stop_training, but most ranks of most groups did not: all ranks "
            "go on training. Give all ranks the same callbacks, which decide by what is the same "
            "on all ranks"
        ]


def test_an_endless_epoch_ends(start):
    start(**GROUPS_OF_2)
    data = tf.data.Dataset.from_tensor_slices(batches(2, hvd.group())).batch(BATCH).repeat()
    callback = StopAt(batch=7)
    compiled().fit(data, verbose=0, shuffle=False, callbacks=[callback])
    assert everywhere(callback.batches) == [9] * 4


def test_a_wish_does_not_outlast_its_training(start):
    start(**GROUPS_OF_2)
    network = compiled()

    def fail(epoch, logs):
        raise KeyError("the script's own")

    failing = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(KeyError):
        fit(network, StopAt(batch=5), failing)
    assert fit(network) == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
@pytest.mark.parametrize("averaging", ["after", "none"])
def test_callbacks_that_decide_see_the_same_on_all_ranks(start, caplog, averaging):
    """Group 1's loss gets worse, so that by local values one half would stop without the other."""
    start(**GROUPS_OF_2)
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    rates = []

    def note_rate(batch, logs):
        rates.append(float(network.optimizer.learning_rate.numpy()))

    validation = batches(2, 5)
    if hvd.group() == 1:  # labels that are the worse the better the model is
        validation = (validation[0], (validation[1] + 1) % 3)
    callbacks = [
        keras.callbacks.LambdaCallback(on_train_batch_end=note_rate),
        keras.callbacks.EarlyStopping("val_loss", patience=2),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1),
    ]
    if averaging == "after":
        callbacks.append(hvdk.callbacks.MetricAverageCallback())
    network = compiled()
    fit(network, *callbacks, epochs=8, validation_data=validation)
    done = network.history.history["val_loss"], rates, digest(network)
    assert everywhere(done) == [done] * 4
    assert len({*rates}) > 1
    expected = ["EarlyStopping, ReduceLROnPlateau: the epoch's metrics are averaged"]
    told = [text.partition(" over")[0] for text in caplog.messages]
    assert told == (expected if averaging == "none" and hvd.rank() == 0 else [])


def test_a_callback_of_one_rank_alone_is_named(start, caplog):
    """As in scripts that validate and stop on rank 0."""
    start(**GROUPS_OF_2)
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    mine = [keras.callbacks.EarlyStopping("val_loss", min_delta=1e9)] if hvd.rank() == 0 else []
    data = batches(2, 5) if hvd.rank() == 0 else None
    assert fit(compiled(), *mine, validation_data=data) == 3
    if hvd.rank() == 0:
        assert any(text.startswith("ranks [0] set") for text in caplog.messages)


def test_a_list_of_callbacks_that_exists_already(start):
    start(**GROUPS_OF_2)
    network = compiled()
    callback = StopAt(batch=2)
    made = keras.callbacks.CallbackList([callback], add_history=True, model=network, steps=6)
    for _ in range(2):
        callback.batches = 0
        network.fit(
            *batches(6, hvd.group()), batch_size=BATCH, shuffle=False, verbose=0, callbacks=made
        )
        assert callback.batches == 4

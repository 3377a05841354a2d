"""One job for all TensorFlow tests: Horovod cannot start anew in a process."""

import gc
import os

import horovod.tensorflow as stock
import keras
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox import Detox
from horovod_detox.tensorflow.context import context

if {"HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE"} & os.environ.keys():
    # With one thread between operations, an exchange that waited for another would never end.
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    # These tests trace functions most of the time; Horovod's thread, which wakes up every so many
    # milliseconds on each rank, takes an eighth of it by default.
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "5")
    stock.init(process_sets="dynamic")
    gc.freeze()  # what exists by now need not be looked at after every test


def iterate(dataset):
    """Iterate over a dataset without the thread that tunes it.

    When an iterator is let go of on a busy processor, TensorFlow 2.21 may tell that thread before
    there is anything to see (`CancellationManager` calls back, then sets its flag). It then waits
    for the thread's next turn: as long as the iterator has lived, up to a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return _iterate(dataset.with_options(options))


_iterate = tf.data.Dataset.__iter__
tf.data.Dataset.__iter__ = iterate


@pytest.fixture(autouse=True)
def fresh_names():
    """Forget the names and seeds of earlier tests, and let go of what their errors hold."""
    keras.utils.clear_session(free_memory=False)
    tf.random.set_seed(0)
    yield
    gc.collect()
    gc.freeze()  # what the tests so far have left is not looked at after each of the others


@pytest.fixture
def start():
    """Return a function that starts a new session of the job: `start(group_size=2, ...)`."""

    def begin(**settings):
        settings.setdefault("timeout", 60.0)
        context.forget()
        hvd.init(detox=Detox(**{"one_round_bytes": 0, **settings}))

    return begin

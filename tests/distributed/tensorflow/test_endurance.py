"""An honest job of `fit` with all that people put into one: nobody is accused, or written to."""

import os
import warnings

import keras
import numpy as np
import pytest

import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from tests.distributed.tensorflow.training import everywhere

pytestmark = pytest.mark.ranks(6)

BATCH, STEPS = 8, 50
EPOCHS = 200 if "SOAK" in os.environ else 2


class Images(keras.utils.PyDataset):
    """The share of a group, prepared by two workers."""

    def __init__(self, group, steps):
        super().__init__(workers=2, max_queue_size=4)
        rng = np.random.default_rng(group)
        self.images = rng.normal(size=(steps * BATCH, 6, 6, 1)).astype(np.float32)
        self.labels = (self.images.mean(axis=(1, 2, 3)) > 0).astype(np.int64)
        self.steps = steps

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return self.images[rows] - self.images[rows].mean(), self.labels[rows]


def refuse(*args):
    raise AssertionError("an honest rank was written to")


def network():
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((6, 6, 1)),
            layers.RandomFlip("horizontal"),
            layers.RandomTranslation(0.2, 0.2),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(2),
        ]
    )


@pytest.mark.timeout(120 * EPOCHS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_many_steps_of_fit_with_augmentation_workers_validation_and_all_callbacks(
    start, tmp_path, monkeypatch
):
    start(group_size=3, outer="median", scrub_every=5, timeout=600.0)
    monkeypatch.setattr("horovod_detox.tensorflow.replicas.write_words", refuse)
    hvd.seed_group(7)
    model = network()
    optimizer = hvdk.DistributedOptimizer(
        keras.optimizers.Adam(0.01, use_ema=True, global_clipnorm=1.0)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    callbacks = [
        hvdk.callbacks.BroadcastGlobalVariablesCallback(0),
        hvdk.callbacks.MetricAverageCallback(),
        hvdk.callbacks.LearningRateWarmupCallback(0.01, warmup_epochs=1),
        hvdk.callbacks.FaultReportCallback(),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=2),
        keras.callbacks.EarlyStopping("val_loss", patience=EPOCHS),
        keras.callbacks.TerminateOnNaN(),
        hvdk.callbacks.BestModelCheckpoint(filepath=str(tmp_path / "best.keras")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of Keras, on workers
        model.fit(
            Images(hvd.group(), STEPS),
            validation_data=Images(9, 4),
            epochs=EPOCHS,
            callbacks=callbacks,
            verbose=0,
        )
    report = hvd.fault_report()
    assert report.steps == EPOCHS * STEPS
    assert (report.events, report.healed, report.causes) == ((), {}, {})
    (work,) = report.optimizers
    assert (work.steps, work.exchanges) == (EPOCHS * STEPS, EPOCHS * STEPS)
    trained = [np.asarray(v).tobytes() for v in model.trainable_variables]
    assert everywhere(trained) == [trained] * 6

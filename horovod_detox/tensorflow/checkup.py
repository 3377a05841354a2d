"""A small network whose gradient needs the usual kernels of TensorFlow, for the doctor."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from horovod_detox.preflight import PreflightReport
from horovod_detox.tensorflow.trial import preflight
from horovod_detox.trial import SEED


def checkup() -> PreflightReport:
    """Let all ranks compute the gradient of the network, on a GPU if they have one."""
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

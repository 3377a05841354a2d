"""A model of which not all takes part in every step, and faults in it."""

import keras
import numpy as np


def network():
    """Return a model with an embedding of which some rows are never used, and dropout."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((2,), dtype="int32"),
            layers.Embedding(10, 6),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3),
        ]
    )


def flip(variable, index=0, bit=20):
    """Flip a bit of a variable of float32, as a particle would."""
    array = np.array(variable.numpy())
    array.reshape(-1).view(np.int32)[index] ^= 1 << bit
    variable.assign(array)


def weight_named(model, name):
    return next(each for each in model.weights if each.path.endswith(name))

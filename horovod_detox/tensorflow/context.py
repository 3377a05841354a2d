"""The session of this process, for TensorFlow."""

import sys
from collections.abc import Iterable
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_detox.frontend.context import Context
from horovod_detox.tensorflow.collectives import HorovodCollectives
from horovod_detox.tensorflow.conditions import conditions

context = Context(hvd, HorovodCollectives, conditions)


def seed_group(seed: int, *models: Any) -> None:
    """Seed python, NumPy, TensorFlow and Keras alike in a group, differently across groups.

    Args:
        seed: the same on every rank.
        *models: Keras models that exist already: their layers drew seeds of their own when they
            were made, and get new ones.
    """
    framework_seed = context.seed_python(seed)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(framework_seed)
        context.seed_python(seed)
    tf.random.set_seed(framework_seed)
    for model in models:
        reseed(model.variables, seed)


def reseed(variables: Iterable[Any], *entropy: int) -> None:
    """Give the seed generators among Keras variables new states, by group and position."""
    states = [variable for variable in variables if variable.name == "seed_generator_state"]
    for position, state in enumerate(states):
        sequence = np.random.SeedSequence([*entropy, context.group(), position])
        state.assign([int(sequence.generate_state(1)[0]), 0])

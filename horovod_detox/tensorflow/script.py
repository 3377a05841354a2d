"""What unmodified TensorFlow scripts get outside of Horovod's modules: shards, compilation."""

import functools
import os
import random
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as eager

from horovod_detox.launcher.random_states import RandomState
from horovod_detox.launcher.stand_in import Frontend, Script
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.data.dealing import even, words

OF_KERAS_2 = "experimental_run_tf_function"
"""An argument of `compile` in Horovod's examples."""


def take_over(script: Script) -> Frontend:
    """Serve a script: call this once in a process."""
    state = RandomState("TensorFlow", read_state, set_seed)
    frontend = Frontend(script, "horovod.tensorflow", hvd, context, state)

    def before_engines(process_set: Any) -> None:
        with tf.init_scope():  # a tape is wrapped while its function is traced
            frontend.before_engines(process_set)

    context.before_engines = before_engines
    _replace_shard(script)
    _replace_compile(script)
    return frontend


def read_state() -> object:
    """Return the state from which operations without a seed of their own get one."""
    seed = eager.global_seed()
    if seed is None:  # every operation draws one from the system
        return os.urandom(16)
    here: Any = eager.context()
    return seed, here._rng.getstate()


def set_seed(seed: int) -> None:
    """Seed TensorFlow and Keras, but not python and NumPy, which Keras would seed as well."""
    python, numpy = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(seed)
    random.setstate(python)
    np.random.set_state(numpy)


def _replace_shard(script: Script) -> None:
    """Have tf.data deal to groups."""
    shard = tf.data.Dataset.shard

    @functools.wraps(shard)
    def deal(self: Any, num_shards: Any, index: Any, *args: Any, **more: Any) -> Any:
        shares, share = (tf.get_static_value(tf.convert_to_tensor(n)) for n in (num_shards, index))
        if shares is None or share is None:
            return shard(self, num_shards, index, *args, **more)
        what = "tf.data.Dataset.shard"
        groups, group = script.share(what, int(shares), int(share))
        among_all = script.plan is not None and shares == script.plan.groups.world_size
        dealt, rest = even(self, groups) if among_all else (self, 0)
        if rest:
            script.tell(f"{what}, of {int(self.cardinality())} elements", words(rest, groups))
        return shard(dealt, groups, group, *args, **more)

    tf.data.Dataset.shard = deal


def _replace_compile(script: Script) -> None:
    """Have Keras leave XLA, which it would choose on a GPU, to scripts that ask for it.

    The function is replaced where it is defined: one of the model's class would be taken for the
    script's own, with which Keras does not compile a model that it loads.
    """
    owner = next(cls for cls in keras.Model.__mro__ if "compile" in vars(cls))
    compile_model = owner.compile

    @functools.wraps(compile_model)
    def compile_plainly(self: Any, *args: Any, **more: Any) -> None:
        if more.pop(OF_KERAS_2, None) is not None:
            script.tell("keras.Model.compile", f"without {OF_KERAS_2}, which Keras 3 does not know")
        compile_model(self, *args, **more)
        if more.get("jit_compile", "auto") == "auto" and self.jit_compile:
            script.tell(
                "keras.Model.compile", "jit_compile=False, as an exchange cannot be compiled"
            )
            self.jit_compile = False

    owner.compile = compile_plainly

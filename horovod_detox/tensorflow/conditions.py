"""What may change the bits of a gradient that TensorFlow computes."""

import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

from horovod_detox.determinism.conditions import common_conditions

CONDITIONS: dict[str, Callable[[], Any]] = {
    "tensorflow": lambda: tf.__version__,
    "keras": lambda: keras.__version__,
    # 0 stands for as many as the machine has cores.
    "intra-op threads": lambda: (
        tf.config.threading.get_intra_op_parallelism_threads()
        or os.environ.get("TF_NUM_INTRAOP_THREADS")
        or len(os.sched_getaffinity(0))
    ),
    "oneDNN": lambda: bool(IsMklEnabled()),
    "op determinism": is_op_determinism_enabled,
    "TF32": tf.config.experimental.tensor_float_32_execution_enabled,
    "XLA": lambda: tf.config.optimizer.get_jit() or "off",
    "floatx": keras.config.floatx,
    "dtype policy": lambda: keras.config.dtype_policy().name,
}
"""As they are in effect."""

ON_GPU: dict[str, Callable[[], Any]] = {
    "GPU": lambda: ", ".join(
        tf.config.experimental.get_device_details(gpu).get("device_name", "unknown")
        for gpu in tf.config.get_visible_devices("GPU")
    ),
    "CUDA": lambda: tf.sysconfig.get_build_info().get("cuda_version"),
    "cuDNN": lambda: tf.sysconfig.get_build_info().get("cudnn_version"),
}


def conditions() -> dict[str, str]:
    """Return the conditions in this process."""
    table = CONDITIONS | (ON_GPU if tf.config.get_visible_devices("GPU") else {})
    return common_conditions() | {name: str(getter()) for name, getter in table.items()}

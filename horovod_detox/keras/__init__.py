"""Everything of `horovod.keras`, for Keras 3, with DETOX in the place of allreduce."""

from horovod.tensorflow import Adasum as Adasum

from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.tensorflow.keras import *  # noqa: F403

# isort: split
from horovod_detox.keras.optimizer import DistributedOptimizer as DistributedOptimizer

__getattr__ = _fall_through(__name__)

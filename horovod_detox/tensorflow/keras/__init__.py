"""Everything of `horovod.tensorflow.keras`, for Keras 3, with DETOX in the place of allreduce."""

from horovod.tensorflow.keras import *  # noqa: F403

import horovod_detox.tensorflow.keras.callbacks as callbacks  # noqa: F401  # not that above
import horovod_detox.tensorflow.keras.elastic as elastic  # noqa: F401
from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.tensorflow import Compression as Compression
from horovod_detox.tensorflow import agree as agree
from horovod_detox.tensorflow import broadcast_variables as broadcast_variables
from horovod_detox.tensorflow import fault_report as fault_report
from horovod_detox.tensorflow import group as group
from horovod_detox.tensorflow import group_rank as group_rank
from horovod_detox.tensorflow import group_size as group_size
from horovod_detox.tensorflow import guard as guard
from horovod_detox.tensorflow import init as init
from horovod_detox.tensorflow import num_groups as num_groups
from horovod_detox.tensorflow import on_fault as on_fault
from horovod_detox.tensorflow import preflight as preflight
from horovod_detox.tensorflow import reset_fault_report as reset_fault_report
from horovod_detox.tensorflow import scrub as scrub
from horovod_detox.tensorflow import seed_group as seed_group
from horovod_detox.tensorflow import shard as shard
from horovod_detox.tensorflow import shutdown as shutdown
from horovod_detox.tensorflow.backend import require_tensorflow as _require_tensorflow
from horovod_detox.tensorflow.keras.optimizer import DistributedOptimizer as DistributedOptimizer
from horovod_detox.tensorflow.keras.optimizer import (
    PartialDistributedOptimizer as PartialDistributedOptimizer,
)
from horovod_detox.tensorflow.keras.optimizer import load_model as load_model
from horovod_detox.tensorflow.verbs import waiting as _waiting

_require_tensorflow()
globals().update(_waiting(globals()))
__getattr__ = _fall_through(__name__)

"""Everything of `horovod.tensorflow`, with DETOX in the place of the gradients' allreduce."""

from horovod.tensorflow import *  # noqa: F403

import horovod_detox.tensorflow.elastic as elastic  # noqa: F401  # not that of the line above
from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.frontend.refused import SyncBatchNorm as _SyncBatchNorm
from horovod_detox.tensorflow.compression import Compression as Compression
from horovod_detox.tensorflow.context import context as _context
from horovod_detox.tensorflow.context import seed_group as seed_group
from horovod_detox.tensorflow.data import shard as shard
from horovod_detox.tensorflow.joining import join as join
from horovod_detox.tensorflow.optimizer import DistributedOptimizer as DistributedOptimizer
from horovod_detox.tensorflow.optimizer import (
    PartialDistributedOptimizer as PartialDistributedOptimizer,
)
from horovod_detox.tensorflow.replicas import guard as guard
from horovod_detox.tensorflow.tape import DistributedGradientTape as DistributedGradientTape
from horovod_detox.tensorflow.tape import (
    PartialDistributedGradientTape as PartialDistributedGradientTape,
)
from horovod_detox.tensorflow.trial import preflight as preflight
from horovod_detox.tensorflow.variables import broadcast_variables as broadcast_variables
from horovod_detox.tensorflow.verbs import waiting as _waiting

SyncBatchNormalization = _SyncBatchNorm
init = _context.init
shutdown = _context.shutdown
group = _context.group
group_rank = _context.group_rank
group_size = _context.group_size
num_groups = _context.num_groups
fault_report = _context.fault_report
reset_fault_report = _context.reset_fault_report
on_fault = _context.on_fault
agree = _context.agree
scrub = _context.scrub
add_process_set = _context.add_process_set
globals().update(_waiting(globals()))
__getattr__ = _fall_through(__name__)

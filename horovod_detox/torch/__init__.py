"""Everything of `horovod.torch`, with DETOX in the place of the optimizer's allreduce."""

from horovod.torch import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.frontend.refused import SyncBatchNorm as SyncBatchNorm
from horovod_detox.torch.compression import Compression as Compression
from horovod_detox.torch.context import context as _context
from horovod_detox.torch.context import seed_group as seed_group
from horovod_detox.torch.joining import join as join
from horovod_detox.torch.optimizer import DistributedOptimizer as DistributedOptimizer
from horovod_detox.torch.replicas import guard as guard
from horovod_detox.torch.sampler import GroupSampler as GroupSampler
from horovod_detox.torch.state import broadcast_optimizer_state as broadcast_optimizer_state
from horovod_detox.torch.state import broadcast_parameters as broadcast_parameters
from horovod_detox.torch.trial import preflight as preflight
from horovod_detox.torch.verbs import after_exchanges as _after_exchanges
from horovod_detox.torch.verbs import meeting as _meeting

init = _context.init
shutdown = _context.shutdown
group = _context.group
group_rank = _context.group_rank
group_size = _context.group_size
num_groups = _context.num_groups
fault_report = _context.fault_report
reset_fault_report = _context.reset_fault_report
on_fault = _context.on_fault
add_process_set = _context.add_process_set
agree = _after_exchanges(_context.agree)
scrub = _after_exchanges(_context.scrub)
globals().update(_meeting(globals()))
__getattr__ = _fall_through(__name__)

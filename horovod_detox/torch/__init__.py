"""Everything of `horovod.torch`, with DETOX in the place of the optimizer's allreduce."""

from horovod.torch import *  # noqa: F403

from horovod_detox.torch.context import fault_report as fault_report
from horovod_detox.torch.context import group as group
from horovod_detox.torch.context import group_rank as group_rank
from horovod_detox.torch.context import group_size as group_size
from horovod_detox.torch.context import init as init
from horovod_detox.torch.context import num_groups as num_groups
from horovod_detox.torch.context import on_fault as on_fault
from horovod_detox.torch.context import seed_group as seed_group
from horovod_detox.torch.context import shutdown as shutdown
from horovod_detox.torch.optimizer import DistributedOptimizer as DistributedOptimizer
from horovod_detox.torch.refused import SyncBatchNorm as SyncBatchNorm
from horovod_detox.torch.refused import join as join
from horovod_detox.torch.sampler import GroupSampler as GroupSampler

"""`horovod.torch.sync_batch_norm`, refused."""

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.frontend.refused import SyncBatchNorm as SyncBatchNorm

__getattr__ = fall_through(__name__)

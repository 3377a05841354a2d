"""`horovod.torch.sync_batch_norm`, refused."""

from horovod_detox.frontend.refused import SyncBatchNorm as SyncBatchNorm

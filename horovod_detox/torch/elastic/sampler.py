"""`horovod.torch.elastic.sampler` as it is."""

from horovod.torch.elastic.sampler import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through

__getattr__ = fall_through(__name__)

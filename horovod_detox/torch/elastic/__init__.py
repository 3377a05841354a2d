"""`horovod.torch.elastic`: states and samplers as they are."""

from horovod.torch.elastic import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.torch.elastic import sampler as sampler
from horovod_detox.torch.elastic import state as state

__getattr__ = fall_through(__name__)

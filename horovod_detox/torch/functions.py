"""`horovod.torch.functions`, but for what DETOX replaces."""

from horovod.torch.functions import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.torch.state import broadcast_optimizer_state as broadcast_optimizer_state
from horovod_detox.torch.state import broadcast_parameters as broadcast_parameters
from horovod_detox.torch.verbs import meeting as _meeting

globals().update(_meeting(globals()))
__getattr__ = fall_through(__name__)

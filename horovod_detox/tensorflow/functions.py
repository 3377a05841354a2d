"""`horovod.tensorflow.functions`, but for what DETOX replaces."""

from horovod.tensorflow.functions import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.tensorflow.variables import broadcast_variables as broadcast_variables
from horovod_detox.tensorflow.verbs import waiting as _waiting

globals().update(_waiting(globals()))
__getattr__ = fall_through(__name__)

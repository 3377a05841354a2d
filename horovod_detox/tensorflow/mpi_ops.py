"""`horovod.tensorflow.mpi_ops`, but for what DETOX replaces."""

from horovod.tensorflow.mpi_ops import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.tensorflow.context import context as _context
from horovod_detox.tensorflow.joining import join as join
from horovod_detox.tensorflow.verbs import waiting as _waiting

init = _context.init
shutdown = _context.shutdown
globals().update(_waiting(globals()))
__getattr__ = fall_through(__name__)

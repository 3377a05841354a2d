"""`horovod.torch.mpi_ops`, but for what DETOX replaces."""

from horovod.torch.mpi_ops import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.torch.context import context as _context
from horovod_detox.torch.joining import join as join
from horovod_detox.torch.verbs import meeting as _meeting

init = _context.init
shutdown = _context.shutdown
globals().update(_meeting(globals()))
__getattr__ = fall_through(__name__)

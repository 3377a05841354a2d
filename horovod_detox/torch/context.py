"""The session of this process, for torch."""

import horovod.torch as hvd
import torch

from horovod_detox.context import Context
from horovod_detox.torch.collectives import HorovodCollectives
from horovod_detox.torch.settings import settings

context = Context(hvd, HorovodCollectives, settings)


def seed_group(seed: int) -> None:
    """Seed python, NumPy and torch alike in the ranks of a group, differently across groups."""
    torch.manual_seed(context.seed_python(seed))

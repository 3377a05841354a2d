"""The session of this process, for torch."""

import horovod.torch as hvd
import torch

from horovod_detox.frontend.context import Context
from horovod_detox.torch.conditions import conditions
from horovod_detox.torch.main_memory import collectives

context = Context(hvd, collectives, conditions)


def seed_group(seed: int) -> None:
    """Seed python, NumPy and torch alike in the ranks of a group, differently across groups."""
    torch.manual_seed(context.seed_python(seed))

"""Horovod's join: ranks whose data end earlier than those of others."""

import horovod.torch as hvd

from horovod_detox.torch.context import context


def join(device: int = -1) -> int:
    """Wait until all ranks have joined; return the last of them.

    Until then the others go on. A group most of whose members have joined has no vote in their
    exchanges; this does not count as a fault.

    Args:
        device: where Horovod makes zeros for the others' allreduce; -1: in main memory.

    Raises:
        ValueError: with a tolerance.
    """
    return context.join(lambda: hvd.join(device))

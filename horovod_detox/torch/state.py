"""An optimizer's state: from the root to all ranks."""

from typing import Any

import horovod.torch as hvd
import torch


@torch.no_grad()
def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: Any = None
) -> None:
    """Overwrite the state of an optimizer by the root's, and leave the parameters as they are.

    Where there is no state yet, `horovod.torch.broadcast_optimizer_state` makes some by a step with
    gradients of zero. When the root has a state already, from a checkpoint, only the others step,
    and weight decay parts their parameters from the root's.

    Args:
        optimizer: distributed or not.
        root_rank: whose state is sent.
        model: of Horovod; finds parameters with sparse gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.clone() for p in parameters]
    hvd.broadcast_optimizer_state(optimizer, root_rank, model)
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)

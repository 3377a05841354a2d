"""Parameters and an optimizer's state: from the root to all ranks."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import horovod.torch as hvd
import torch

from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.exchange.sharing import share
from horovod_detox.packing.layout import difference
from horovod_detox.torch.context import context
from horovod_detox.torch.main_memory import takes_devices
from horovod_detox.torch.replicas import holdings

SCOPE, WHAT = "detox", "broadcast_parameters"

State = list[dict[str, Any]]
"""For each parameter of an optimizer what is kept of it; nothing before the first step."""


@torch.no_grad()
def broadcast_parameters(params: Any, root_rank: int) -> None:
    """Overwrite tensors by the root's, whether they are contiguous or not, on a GPU or not.

    Args:
        params: a dict, as `model.state_dict()`, or a list, as `[*model.named_parameters()]`.
        root_rank: whose tensors are sent.

    Raises:
        RanksDisagree: on every rank, when ranks have tensors of other names, shapes or dtypes.
    """
    pairs: Iterable[Any] = sorted(params.items()) if isinstance(params, Mapping) else params
    named: list[tuple[str, torch.Tensor]] = [
        pair if isinstance(pair, tuple) else (f"tensor {i}", pair) for i, pair in enumerate(pairs)
    ]
    lists = share(context.collectives(SCOPE), WHAT, [_described(*pair) for pair in named])
    if differ := difference(lists):
        raise RanksDisagree(f"the parameters to broadcast differ between ranks: {differ}")
    reach = torch.Tensor.contiguous if takes_devices() else lambda tensor: tensor.contiguous().cpu()
    sent = [(name, reach(tensor)) for name, tensor in named]
    hvd.broadcast_parameters(sent, root_rank)
    for (_, tensor), (_, received) in zip(named, sent, strict=True):
        if received is not tensor:
            tensor.copy_(received)
    holdings.hold(named)


def _described(name: str, tensor: torch.Tensor) -> list[Any]:
    return [name, [*tensor.shape], str(tensor.dtype).removeprefix("torch.")]


@torch.no_grad()
def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: Any = None
) -> None:
    """Overwrite the state and the options of an optimizer by the root's, and nothing else.

    Where there is no state yet, `horovod.torch.broadcast_optimizer_state` makes some by a step with
    gradients of zero: Adam then counts one step too many, and weight decay moves
    parameters. Here a state that the root has not is none on any rank.

    Args:
        optimizer: distributed or not.
        root_rank: whose state is sent.
        model: of Horovod; not needed.

    Raises:
        ValueError: on every rank, for LBFGS, or where ranks have other parameter groups.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("cannot broadcast torch.optim.LBFGS state")
    options = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    plain = [
        {key: _Tensor(value) if torch.is_tensor(value) else value for key, value in state.items()}
        for state in _state_of(optimizer)
    ]
    told = hvd.broadcast_object((sizes, options, plain), root_rank, name="detox.optimizer.state")
    everyone = hvd.allgather_object(sizes, name="detox.optimizer.groups")
    if odd := [rank for rank, theirs in enumerate(everyone) if theirs != told[0]]:
        raise ValueError(
            f"ranks {odd} have optimizers with parameter groups of other sizes than rank "
            f"{root_rank}: {everyone} by rank"
        )
    for group, theirs in zip(optimizer.param_groups, told[1], strict=True):
        group.update(theirs)
    state = [*_state_like(optimizer, told[2])]
    tensors = [
        (f"{key}.{i}", value)
        for i, each in enumerate(state)
        for key, value in each.items()
        if torch.is_tensor(value)
    ]
    if tensors:
        broadcast_parameters(tensors, root_rank)
    for parameter, each in zip(_parameters(optimizer), state, strict=True):
        if each:
            optimizer.state[parameter] = each
        else:
            optimizer.state.pop(parameter, None)


class _Tensor:
    """What a rank has to know of a tensor before it comes.

    Attributes:
        is_on_cpu: whether it is in main memory, which its parameter may not be.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.is_on_cpu = tensor.device.type == "cpu"

    def like(self, own: Any, parameter: torch.Tensor) -> torch.Tensor:
        """Return the tensor that a rank has of the same kind, or else a new one."""
        if torch.is_tensor(own) and (own.shape, own.dtype) == (self.shape, self.dtype):
            return own
        device = "cpu" if self.is_on_cpu else parameter.device
        return torch.empty(self.shape, dtype=self.dtype, device=device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _state_of(optimizer: torch.optim.Optimizer) -> State:
    return [dict(optimizer.state.get(parameter, {})) for parameter in _parameters(optimizer)]


def _state_like(optimizer: torch.optim.Optimizer, told: State) -> Iterator[dict[str, Any]]:
    """Yield the state of each parameter as told, with tensors that are to be received."""
    own = _state_of(optimizer)
    for parameter, mine, theirs in zip(_parameters(optimizer), own, told, strict=True):
        yield {
            key: value.like(mine.get(key), parameter) if isinstance(value, _Tensor) else value
            for key, value in theirs.items()
        }

"""A gradient that all ranks compute from one batch, with torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from horovod_detox.preflight import PreflightReport, Trial
from horovod_detox.torch.context import context
from horovod_detox.torch.settings import settings
from horovod_detox.trial import SEED, Piece, compare_trials, digest, from_first_rank, seeded


def preflight(
    model: torch.nn.Module, batch: Any, loss: Callable[[Any, Any], torch.Tensor] | None = None
) -> PreflightReport:
    """Let every rank compute the gradient of rank 0's batch, twice, and compare the bits.

    All ranks call it, after `init` and `broadcast_parameters`. The gradient is computed with rank
    0's buffers and the same random state everywhere, in the mode in which the model is. Nothing
    changes: weights and their gradients are not touched, buffers and random state are as before.

    Args:
        model: what is called with the inputs.
        batch: `(inputs, targets)` for a `loss`, else the inputs. Inputs are a tensor, or a tuple,
            list or dictionary of arguments; all ranks give as many tensors.
        loss: `loss(outputs, targets)`; None: the sum of the outputs' squares.

    Returns:
        the same report on every rank: its `str()` is the verdict, `table()` the settings that
        differ, `is_deterministic` whether the job is fit for votes.

    Raises:
        RankFailed: where another rank could not compute the gradient.
    """
    collectives = context.collectives("detox.preflight")
    plan = context.session().plan()
    tensors = iter(from_first_rank(collectives, "batch", [_piece(t) for t in _tensors(batch)]))
    common = _mapped(batch, lambda tensor: _tensor(next(tensors)).to(tensor.device))
    buffers = [buffer for _, buffer in model.named_buffers()]
    state = from_first_rank(collectives, "buffers", [_piece(buffer) for buffer in buffers])

    def gradients() -> dict[str, str]:
        with _unchanged(model), _seeded(), torch.enable_grad():
            for buffer, piece in zip(buffers, state, strict=True):
                buffer.detach().copy_(_tensor(piece))
            return _gradients(model, common, loss)

    def trial() -> Trial:
        weights = {name: digest(_bytes(weight)) for name, weight in model.named_parameters()}
        return Trial(settings(), weights, gradients(), gradients())

    return compare_trials(collectives, plan.groups if plan else None, trial)


def _gradients(model: torch.nn.Module, batch: Any, loss: Any) -> dict[str, str]:
    """Return the digest of each gradient; `autograd.grad` leaves alone what the optimizer sees."""
    inputs, targets = (batch, None) if loss is None else batch
    outputs = _call(model, inputs)
    value = _sum_of_squares(outputs) if loss is None else loss(outputs, targets).sum()
    weights = dict(model.named_parameters())
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient")
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    digests = {
        name: digest(_bytes(gradient))
        for name, gradient in zip(trained, found, strict=True)
        if gradient is not None
    }
    nothing = digest(np.empty(0, np.uint8))
    return {name: digests.get(name, nothing) for name in weights}


def _call(model: torch.nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _sum_of_squares(outputs: Any) -> torch.Tensor:
    squares = [t.float().square().sum() for t in _tensors(outputs) if t.is_floating_point()]
    if not squares:
        raise ValueError("the model returns no floating-point tensor: give a loss")
    return torch.stack(squares).sum()


@contextmanager
def _unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Leave the model's buffers as they were."""
    saved = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in saved:
            buffer.detach().copy_(value)
            module._buffers[name] = buffer


@contextmanager
def _seeded() -> Iterator[None]:
    """Compute from a common random state; the process's own is as before."""
    with seeded(), torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(SEED)
        yield


def _mapped(batch: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Return a nested batch with every tensor replaced."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: _mapped(part, function) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [_mapped(part, function) for part in batch]
    return batch


def _tensors(batch: Any) -> list[torch.Tensor]:
    """Return the tensors of a nested batch."""
    found: list[torch.Tensor] = []
    _mapped(batch, found.append)
    return found


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """Return the bits of a tensor, sparse ones densely."""
    dense = tensor.detach().to_dense().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy()


def _piece(tensor: torch.Tensor) -> Piece:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _bytes(tensor)


def _tensor(piece: Piece) -> torch.Tensor:
    dtype, shape, data = piece
    return torch.from_numpy(data.copy()).view(getattr(torch, dtype)).reshape(tuple(shape))

"""The trial with torch: a gradient that all ranks compute from one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from torch import nn

from horovod_detox.determinism.trial import SEED, Named, Piece, try_out
from horovod_detox.determinism.verdict import PreflightReport
from horovod_detox.torch.conditions import conditions
from horovod_detox.torch.context import context


def preflight(
    model: nn.Module, batch: Any, loss: Callable[[Any, Any], torch.Tensor] | None = None
) -> PreflightReport:
    """Let every rank compute the gradient of rank 0's batch, twice, and compare the bits.

    All ranks call it, after `init` and `broadcast_parameters`. The gradient is computed with rank
    0's buffers and the same random state everywhere, in the mode in which the model is. Nothing
    changes: weights and their gradients are not touched, buffers and random state are as before.
    The report's `str()` is the verdict, `table()` has the settings that differ, and
    `is_deterministic` says whether the job can use votes.

    Args:
        model: what is called with the inputs.
        batch: `(inputs, targets)` for a `loss`, else the inputs. Inputs are a tensor, or a tuple,
            list or dictionary of arguments; all ranks give as many tensors.
        loss: `loss(outputs, targets)`; None: the sum of the outputs' squares.

    Returns:
        the report, the same on every rank.

    Raises:
        RankFailed: where another rank could not compute the gradient.
    """
    plan = context.session().plan()
    collectives = context.collectives("detox.preflight")
    return try_out(collectives, plan.groups if plan else None, _Subject(model, batch, loss))


def checkup() -> PreflightReport:
    """Try out a small network that needs the usual kernels, on a GPU if there is one."""
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{hvd.local_rank() % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    rng = np.random.default_rng(SEED)
    model = network()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.from_numpy(rng.normal(0, 0.1, tuple(weight.shape))))
    inputs = torch.from_numpy(rng.normal(size=(32, 3, 16, 16)).astype(np.float32))
    return preflight(model.to(device), inputs.to(device))


def network() -> nn.Module:
    """Return a network with convolutions, batch normalisation and matrix products."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class _Subject:
    """A model, a batch and a loss of torch: a `determinism.trial.Subject`."""

    def __init__(self, model: nn.Module, batch: Any, loss: Any) -> None:
        self._model, self._batch, self._loss = model, batch, loss
        self.batch = [_piece(tensor) for tensor in _tensors(batch)]
        self._buffers = list(model.buffers())  # the model may make more of them in a trial
        self.state = [_piece(buffer) for buffer in self._buffers]

    def conditions(self) -> dict[str, str]:
        return conditions()

    def weights(self) -> Iterator[Named]:
        for name, weight in self._model.named_parameters():
            yield name, _bytes(weight)

    def gradients(self, batch: Sequence[Piece], state: Sequence[Piece]) -> Iterator[Named]:
        tensors = iter(batch)
        common = _mapped(self._batch, lambda tensor: _tensor(next(tensors)).to(tensor.device))
        with _unchanged(self._model), _seeded(), torch.enable_grad():
            for buffer, piece in zip(self._buffers, state, strict=True):
                buffer.detach().copy_(_tensor(piece))
            yield from self._computed(common)

    def _computed(self, batch: Any) -> Iterator[Named]:
        """Yield each gradient; `autograd.grad` leaves alone what the optimizer sees."""
        inputs, targets = (batch, None) if self._loss is None else batch
        outputs = _call(self._model, inputs)
        if self._loss is None:
            value = _sum_of_squares(outputs)
        else:
            value = self._loss(outputs, targets).sum()
        weights = dict(self._model.named_parameters())
        trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        if not trained:
            raise ValueError("no parameter of the model requires a gradient")
        found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        gradients = dict(zip(trained, found, strict=True))
        for name in weights:
            gradient = gradients.get(name)
            yield name, np.empty(0, np.uint8) if gradient is None else _bytes(gradient)


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _sum_of_squares(outputs: Any) -> torch.Tensor:
    squares = [t.float().square().sum() for t in _tensors(outputs) if t.is_floating_point()]
    if not squares:
        raise ValueError("the model returns no floating-point tensor: give a loss")
    return torch.stack(squares).sum()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
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
    with torch.random.fork_rng(range(torch.cuda.device_count())):
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

"""The gradients of a model packed into one copy of words, and the update unpacked from it."""

from collections.abc import Sequence
from typing import Any

import torch

from horovod_detox.layout import Layout


class Packing:
    """Where each parameter's gradient lies in the copy that is exchanged.

    Sparse gradients travel densely and come back sparse; complex ones travel as real pairs.

    Attributes:
        parameters: the packed parameters, in the order of the layout.
        layout: what the words of the copy are, as compressed for the wire.
        copy: words for the gradients, used again in every step.
        update: words for the update, used again in every step.
        device: where both are; None: there are no parameters.
    """

    def __init__(
        self, named_parameters: Sequence[tuple[str, torch.Tensor]], compression: Any
    ) -> None:
        self.parameters = [parameter for _, parameter in named_parameters]
        self._compression = compression
        self._contexts: list[Any] = []
        self._sparse_dims: dict[int, int] = {}
        entries = []
        for name, parameter in named_parameters:
            real = _real(parameter.detach())
            wire, context = compression.compress(real.new_zeros(1))
            self._contexts.append(context)
            entries.append((name, tuple(real.shape), str(wire.dtype).removeprefix("torch.")))
        self.layout = Layout(tuple(entries))
        self.device = self.parameters[0].device if self.parameters else None
        self.copy = torch.zeros(self.layout.words, dtype=torch.int64, device=self.device)
        self.update = torch.empty_like(self.copy)
        self._views = self._split(self.copy)

    def pack(self, indices: Sequence[int] | None = None) -> torch.Tensor:
        """Return the copy: `(w,)` words of all gradients; a missing gradient counts as zero.

        Args:
            indices: the parameters whose gradients to pack now; None: all.
        """
        present, gradients = [], []
        for i in range(len(self.parameters)) if indices is None else indices:
            parameter = self.parameters[i]
            if parameter.grad is None:
                self._views[i].zero_()
                continue
            if parameter.grad.is_sparse:
                self._sparse_dims[i] = parameter.grad.sparse_dim()
            gradient = _real(parameter.grad.detach().to_dense())
            wire, self._contexts[i] = self._compression.compress(gradient)
            if wire.shape != gradient.shape:
                raise ValueError(
                    f"{self._compression} turns a gradient of shape {tuple(gradient.shape)} into "
                    f"{tuple(wire.shape)}: votes are aggregated as they travel, so a compressor "
                    "must keep the shape"
                )
            present.append(self._views[i])
            gradients.append(wire)
        if present:
            torch._foreach_copy_(present, gradients)  # type: ignore[attr-defined]
        return self.copy

    def unpack(self, update: torch.Tensor, factor: float = 1.0) -> None:
        """Write `factor` times the update, `(w,)` words, into the gradients."""
        for i, (parameter, view) in enumerate(
            zip(self.parameters, self._split(update), strict=True)
        ):
            dense = self._compression.decompress(view, self._contexts[i])
            if factor != 1.0:
                dense = dense * factor
            if parameter.is_complex():
                dense = torch.view_as_complex(dense.contiguous())
            if i in self._sparse_dims:
                parameter.grad = dense.to(parameter).to_sparse(self._sparse_dims[i])
            else:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(dense)

    def _split(self, words: torch.Tensor) -> list[torch.Tensor]:
        """View a copy as one tensor per parameter."""
        buffers = self.layout.typed(words)
        return [
            buffers[segment][start:stop].view(shape)
            for (segment, start, stop), (_, shape, _) in zip(
                self.layout.places, self.layout.parameters, strict=True
            )
        ]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """View a complex tensor as real pairs."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor

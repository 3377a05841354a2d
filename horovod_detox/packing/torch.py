"""Gradients of torch packed into one copy of words, as they are or compressed, and back."""

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from horovod_detox.arrays.namespaces import Copy, Words
from horovod_detox.packing.bits import bits_of_torch, refuse_sparse, words_of_torch
from horovod_detox.packing.layout import Layout

NamedParameters = Sequence[tuple[str, torch.Tensor]]


class Uncompressed:
    """Send gradients as they are."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the tensor."""
        return tensor, None

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: None) -> torch.Tensor:
        """Return the tensor."""
        return tensor


class _Cast:
    """Send floating-point gradients in a narrower dtype."""

    wire: torch.dtype

    @classmethod
    def compress(cls, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        """Return the tensor as it travels, and its dtype."""
        return tensor.to(cls.wire) if tensor.dtype.is_floating_point else tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: torch.dtype) -> torch.Tensor:
        """Return the tensor in its former dtype."""
        return tensor.to(ctx)


class FP16(_Cast):
    """Send floating-point gradients as float16."""

    wire = torch.float16


class BF16(_Cast):
    """Send floating-point gradients as bfloat16."""

    wire = torch.bfloat16


class Signs:
    """Send one bit per element: whether it is >= 0, which also -0 is and NaN is not."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        """Return the bits, as booleans, and the tensor's dtype."""
        return tensor >= 0, tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: torch.dtype) -> torch.Tensor:
        """Return 1 and -1 in a dtype."""
        return tensor.to(ctx).mul_(2).sub_(1)


COMPRESSORS = {"none": Uncompressed, "fp16": FP16, "bf16": BF16, "sign": Signs}
"""By their names in Horovod's `Compression`, which has the first two, too."""


def packing_of(named_parameters: NamedParameters, compression: Any) -> "Packing | SignPacking":
    """Return how the parameters' gradients travel under a compression of Horovod's kind."""
    if compression is Signs:
        return SignPacking(named_parameters)
    return Packing(named_parameters, compression)


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

    def __init__(self, named_parameters: NamedParameters, compression: Any) -> None:
        self.parameters = [parameter for _, parameter in named_parameters]
        self._compression = compression
        self._contexts: list[Any] = []
        self._sparse_dims: dict[int, int] = {}
        entries = []
        self._kinds = [_kind(parameter) for parameter in self.parameters]
        for name, parameter in named_parameters:
            real = _real(parameter.detach().to(_dtype(parameter)))
            wire, context = compression.compress(real.new_zeros(1))
            self._contexts.append(context)
            entries.append((name, tuple(real.shape), str(wire.dtype).removeprefix("torch.")))
        self.layout = Layout(tuple(entries))
        self.device = self.parameters[0].device if self.parameters else None
        self.copy = torch.zeros(self.layout.words, dtype=torch.int64, device=self.device)
        self.update = torch.empty_like(self.copy)
        self._views = self._split(self.copy)

    def fits(self, named_parameters: NamedParameters) -> bool:
        """Return whether these are the packed parameters, of the same shapes and dtypes."""
        parameters = [parameter for _, parameter in named_parameters]
        return (
            len(parameters) == len(self.parameters)
            and all(map(operator.is_, parameters, self.parameters))
            and all(_kind(p) == kind for p, kind in zip(parameters, self._kinds, strict=True))
        )

    def pack(self, indices: Sequence[int] | None = None) -> Copy:
        """Return the copy: `(w,)` words of all gradients.

        A missing gradient counts as zero, and so does that of a frozen parameter.

        Args:
            indices: the parameters whose gradients to pack now; None: all.
        """
        present, gradients = [], []
        for i in range(len(self.parameters)) if indices is None else indices:
            parameter = self.parameters[i]
            if parameter.grad is None or not parameter.requires_grad:
                self._views[i].zero_()
                continue
            if parameter.grad.is_sparse:
                self._sparse_dims[i] = parameter.grad.sparse_dim()
            else:
                self._sparse_dims.pop(i, None)
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

    def unpack(
        self, update: Words, factor: float = 1.0, indices: Sequence[int] | None = None
    ) -> None:
        """Write `factor` times the update, `(w,)` words, into the gradients.

        Frozen parameters are left as they are.

        Args:
            update: left as it is.
            factor: what it is multiplied by.
            indices: the parameters whose gradients to write now; None: all.
        """
        views = self._split(update)
        for i in range(len(self.parameters)) if indices is None else indices:
            parameter, view = self.parameters[i], views[i]
            if not parameter.requires_grad:
                continue
            dense = self._compression.decompress(view, self._contexts[i])
            if factor != 1.0:
                dense = dense * factor
            if parameter.is_complex():
                dense = torch.view_as_complex(dense.contiguous())
            if i in self._sparse_dims:
                dense = dense.to(parameter.device, _dtype(parameter))
                parameter.grad = dense.to_sparse(self._sparse_dims[i])
            else:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter, dtype=_dtype(parameter))
                parameter.grad.data.copy_(dense)  # whose version tells what the script writes

    def place(self) -> AbstractContextManager[Any]:
        """Return where this thread computes, for another thread to enter."""
        if self.device is None or self.device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.current_stream(self.device))

    def _split(self, words: Words) -> list[torch.Tensor]:
        """View a copy as one tensor per parameter."""
        buffers = self.layout.typed(words)
        return [
            buffers[segment][start:stop].view(shape)
            for (segment, start, stop), (_, shape, _) in zip(
                self.layout.places, self.layout.parameters, strict=True
            )
        ]


class SignPacking:
    """Where the sign of each gradient's elements lies in the copy that is exchanged.

    Complex gradients travel as real pairs. All is computed on the gradients' device.

    Attributes:
        layout: what the words of the copy are.
        update: words for the update, used again in every step.
    """

    def __init__(self, named_parameters: NamedParameters) -> None:
        self._named_parameters = named_parameters
        self._packing = Packing(named_parameters, Uncompressed)
        self.layout = self._packing.layout.signs
        self.update = torch.empty(self.layout.words, dtype=torch.int64, device=self._packing.device)

    def fits(self, named_parameters: NamedParameters) -> bool:
        """Return whether these are the packed parameters, of the same shapes and dtypes."""
        return self._packing.fits(named_parameters)

    def pack(self) -> Copy:
        """Return the copy: `(w,)` words of all gradients' signs, and NaN if one is not finite.

        Raises:
            ValueError: for sparse gradients.
        """
        for name, parameter in self._named_parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                refuse_sparse(name)
        buffers = self._packing.layout.typed(self._packing.pack())
        bits = torch.cat([Signs.compress(buffer)[0] for buffer in buffers])
        extremes = [bound for buffer in buffers if len(buffer) for bound in buffer.aminmax()]
        finite = torch.stack([buffers[0].new_zeros(()), *extremes]).isfinite().all()
        number = torch.where(finite, 0.0, torch.nan).double().view(torch.int64)
        return torch.cat([words_of_torch(bits), number[None]])

    def unpack(self, update: Words, factor: float = 1.0) -> None:
        """Write `factor` times the update, `(w,)` words, into the gradients: 1 and -1, or NaN."""
        words, number = self.layout.typed(update)
        nan = number * 0  # else 0, also if captured groups sent another number
        gradients = self._packing.update
        buffers = self._packing.layout.typed(gradients)
        bits = bits_of_torch(words, sum(map(len, buffers)))
        parts = bits.split([len(buffer) for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(Signs.decompress(part, buffer.dtype)).add_(nan.to(buffer))
        self._packing.unpack(gradients, factor)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """View a complex tensor as real pairs."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _dtype(parameter: torch.Tensor) -> torch.dtype:
    """Return the dtype of a parameter's gradient, which newer versions of torch let differ."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype


def _kind(parameter: torch.Tensor) -> tuple[Any, ...]:
    """Return what must not change while a parameter is packed."""
    return parameter.shape, _dtype(parameter), parameter.device

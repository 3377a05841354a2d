"""The signs of a model's gradients packed into one copy of words, 64 to a word."""

from collections.abc import Sequence
from typing import Any

import torch

from horovod_detox.refused import refuse_sparse_signs
from horovod_detox.torch.compression import Compression
from horovod_detox.torch.packing import Packing

_GATHER = 0x0102_0408_1020_4080
"""Eight bytes of 0 or 1, times this, have their bits in the highest byte, the first lowest."""
_REPEAT = 0x0101_0101_0101_0101
"""A byte, times this, is in all eight bytes."""
_SELECT = 0x8040_2010_0804_0201 - (1 << 64)
"""The lowest bit of the first byte, the next one of the second and so on, as an int64."""


def packing_of(
    named_parameters: Sequence[tuple[str, torch.Tensor]], compression: Any
) -> "Packing | SignPacking":
    """Return how the parameters' gradients travel under a compression."""
    if compression is Compression.sign:
        return SignPacking(named_parameters)
    return Packing(named_parameters, compression)


class SignPacking:
    """Where the sign of each gradient's elements lies in the copy that is exchanged.

    Complex gradients travel as real pairs. All is computed on the gradients' device.

    Attributes:
        layout: what the words of the copy are.
        update: words for the update, used again in every step.
    """

    def __init__(self, named_parameters: Sequence[tuple[str, torch.Tensor]]) -> None:
        self._named_parameters = named_parameters
        self._packing = Packing(named_parameters, Compression.none)
        self.layout = self._packing.layout.signs
        self.update = torch.empty(self.layout.words, dtype=torch.int64, device=self._packing.device)

    def pack(self) -> torch.Tensor:
        """Return the copy: `(w,)` words of all gradients' signs, and NaN if one is not finite.

        Raises:
            ValueError: for sparse gradients.
        """
        for name, parameter in self._named_parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                refuse_sparse_signs(name)
        buffers = self._packing.layout.typed(self._packing.pack())
        bits = torch.cat([Compression.sign.compress(buffer)[0] for buffer in buffers])
        extremes = [bound for buffer in buffers if len(buffer) for bound in buffer.aminmax()]
        finite = torch.stack([buffers[0].new_zeros(()), *extremes]).isfinite().all()
        number = torch.where(finite, 0.0, torch.nan).double().view(torch.int64)
        return torch.cat([to_words(bits), number[None]])

    def unpack(self, update: torch.Tensor, factor: float = 1.0) -> None:
        """Write `factor` times the update, `(w,)` words, into the gradients: 1 and -1, or NaN."""
        words, number = self.layout.typed(update)
        nan = number * 0  # else 0, also if captured groups sent another number
        gradients = self._packing.update
        buffers = self._packing.layout.typed(gradients)
        bits = to_bits(words, sum(map(len, buffers))).split([len(buffer) for buffer in buffers])
        for buffer, part in zip(buffers, bits, strict=True):
            buffer.copy_(Compression.sign.decompress(part, buffer.dtype)).add_(nan.to(buffer))
        self._packing.unpack(gradients, factor)


def to_words(bits: torch.Tensor) -> torch.Tensor:
    """Pack booleans: `(n,) -> (ceil(n / 64),)` words, the first in the lowest bit."""
    octets = torch.cat([bits, bits.new_zeros(-len(bits) % 64)]).view(torch.int64)
    return (octets * _GATHER >> 56).to(torch.uint8).view(torch.int64)


def to_bits(words: torch.Tensor, length: int) -> torch.Tensor:
    """Return the first booleans of words: `(w,) -> (length,)`."""
    octets = words.view(torch.uint8).to(torch.int64) * _REPEAT & _SELECT
    return (octets.view(torch.uint8) != 0)[:length]

"""What gradients travel as: Horovod's compressors and ours."""

from typing import Any

import horovod.torch as hvd
import torch


class BF16Compressor:
    """Send floating-point gradients as bfloat16."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        """Return the tensor as bfloat16, and its dtype."""
        wire = tensor.bfloat16() if tensor.dtype.is_floating_point else tensor
        return wire, tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: torch.dtype) -> torch.Tensor:
        """Return the tensor in its former dtype."""
        return tensor.to(ctx)


class SignCompressor:
    """Send one bit per element: whether it is >= 0, which also -0 is and NaN is not."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        """Return the bits, as booleans, and the tensor's dtype."""
        return tensor >= 0, tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: torch.dtype) -> torch.Tensor:
        """Return 1 and -1 in a dtype."""
        return tensor.to(ctx).mul_(2).sub_(1)


class Compression(hvd.Compression):
    """Compressors of gradients, for `compression=`.

    Attributes:
        none, fp16, bf16: votes are aggregated in float32, whatever they travel as.
        sign: one bit per element, for `Detox(outer="sign_majority")` only. The update is 1 or -1
            everywhere: 1 where the majority's gradient is 0, as that of an unused parameter is.
    """

    bf16: Any = BF16Compressor
    sign: Any = SignCompressor

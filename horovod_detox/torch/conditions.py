"""What may change the bits of a gradient that torch computes."""

from collections.abc import Callable
from typing import Any

import torch

from horovod_detox.determinism.conditions import common_conditions

_backends: Any = torch.backends

CONDITIONS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.__version__,
    "torch threads": torch.get_num_threads,
    "CPU capability": _backends.cpu.get_cpu_capability,
    "oneDNN": lambda: _backends.mkldnn.is_available() and _backends.mkldnn.enabled,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "default dtype": torch.get_default_dtype,
    "float32 matmul precision": torch.get_float32_matmul_precision,
}
"""As they are in effect."""

ON_GPU: dict[str, Callable[[], Any]] = {
    "GPU": torch.cuda.get_device_name,
    "CUDA": lambda: torch.version.cuda or torch.version.hip,
    "cuDNN": _backends.cudnn.version,
    "cuDNN enabled": lambda: _backends.cudnn.enabled,
    "cuDNN benchmark": lambda: _backends.cudnn.benchmark,
    "cuDNN deterministic": lambda: _backends.cudnn.deterministic,
    "TF32 in matmul": lambda: _backends.cuda.matmul.allow_tf32,
    "TF32 in cuDNN": lambda: _backends.cudnn.allow_tf32,
}


def conditions() -> dict[str, str]:
    """Return the conditions in this process."""
    table = CONDITIONS | (ON_GPU if torch.cuda.is_available() else {})
    return common_conditions() | {name: _read(getter) for name, getter in table.items()}


def _read(getter: Callable[[], Any]) -> str:
    """Return a setting as text."""
    try:
        return str(getter())
    except RuntimeError:  # torch's answer where its old and its new flags for TF32 are mixed
        return "set by fp32_precision"

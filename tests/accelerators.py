"""The accelerator of the tests: a fake one, or with `pytest --device cuda` a GPU."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fake_device import DEVICE, DeviceTensor, FakeDevice

aten = torch.ops.aten


class Account(Protocol):
    """What a thread copied to main memory.

    Attributes:
        bytes_to_host: how many.
    """

    bytes_to_host: int


class Accelerator(Protocol):
    """Where tensors are that are not in main memory.

    Attributes:
        device: torch's name for it.
    """

    device: torch.device

    def entered(self) -> AbstractContextManager[Account]:
        """Return what a thread enters that uses it."""
        ...

    def place(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values as a tensor there."""
        ...

    def values(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what a tensor holds, in main memory, without counting it."""
        ...


class Fake:
    """One that any machine has; its device is `meta`."""

    device = DEVICE

    def entered(self) -> AbstractContextManager[Account]:
        return FakeDevice()

    def place(self, values: torch.Tensor) -> torch.Tensor:
        return DeviceTensor(values)

    def values(self, tensor: Any) -> torch.Tensor:
        return tensor.on_cpu


class Gpu:
    """The first GPU."""

    device = torch.device("cuda")

    def entered(self) -> AbstractContextManager[Account]:
        return CopiesToHost(self.device)

    def place(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.device)

    def values(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu()


class CopiesToHost(TorchDispatchMode):
    """Counts what the thread that has entered this copies from a device to main memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self.bytes_to_host = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if kind is aten._local_scalar_dense:
            self.bytes_to_host += sum(t.element_size() for t in args if self._has(t))
        elif kind in {aten.copy_, aten._foreach_copy_}:
            for target, source in zip(_tensors(args[0]), _tensors(args[1]), strict=True):
                if self._has(source) and not self._has(target):
                    self.bytes_to_host += source.nbytes
        elif any(map(self._has, _tensors(args))):
            left = [t for t in _tensors(result) if not self._has(t)]
            self.bytes_to_host += sum(t.nbytes for t in left)
        return result

    def _has(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor.device.type == self._device.type


def _tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in arguments or results."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []

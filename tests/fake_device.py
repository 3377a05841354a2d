"""An accelerator without one: tensors that are not in main memory, and an account of what leaves.

Their device is torch's `meta`, which has no values: these are kept beside them, on the CPU. As on a
real device, nothing can get at them but a copy to main memory, which is counted, and operations do
not mix them with tensors that are elsewhere.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DEVICE = torch.device("meta")
_MAY_MIX = {aten.copy_, aten._foreach_copy_, aten.index, aten.index_put_}


class DeviceTensor(torch.Tensor):
    """A tensor on the fake device.

    Attributes:
        on_cpu: its values.
    """

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "DeviceTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        tensor.on_cpu = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the fake device, which this thread has not entered")


class FakeDevice(TorchDispatchMode):
    """The device as this thread sees it, while it is entered.

    Attributes:
        bytes_to_host: how many were copied to main memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes_to_host = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given: list[torch.Tensor] = []
        arguments = [_values(argument, given) for argument in args]
        options = {name: _values(option, given) for name, option in kwargs.items()}
        ours = {id(t.on_cpu): t for t in given if isinstance(t, DeviceTensor)}
        device, kind = kwargs.get("device"), func.overloadpacket
        stays = bool(ours) if device is None else torch.device(device) == DEVICE
        if device is not None:
            options["device"] = "cpu"
        elsewhere = any(t.ndim and not isinstance(t, DeviceTensor) for t in given)
        if ours and elsewhere and kind not in _MAY_MIX:
            raise RuntimeError(f"{func} got tensors on the device and in main memory")
        result = func(*arguments, **options)
        if kind is aten._local_scalar_dense:
            self.bytes_to_host += sum(t.element_size() for t in ours.values())
        elif kind in {aten.copy_, aten._foreach_copy_}:
            self._count(*args[:2])
            return None if result is None else args[0]
        elif ours and not stays:
            self.bytes_to_host += result.nbytes
        return _wrap(result, ours) if stays else result

    def _count(self, targets: Any, sources: Any) -> None:
        """Count what is copied from the device into tensors in main memory."""
        if isinstance(targets, torch.Tensor):
            targets, sources = [targets], [sources]
        for target, source in zip(targets, sources, strict=True):
            if isinstance(source, DeviceTensor) and not isinstance(target, DeviceTensor):
                self.bytes_to_host += source.nbytes


def _values(argument: Any, given: list[torch.Tensor]) -> Any:
    """Return an argument with values in the place of tensors, which are added to a list."""
    if isinstance(argument, list | tuple):
        return [_values(part, given) for part in argument]
    if not isinstance(argument, torch.Tensor):
        return argument
    given.append(argument)
    return argument.on_cpu if isinstance(argument, DeviceTensor) else argument


def _wrap(result: Any, ours: dict[int, DeviceTensor]) -> Any:
    """Return results as tensors on the device; what was written to is the tensor it was."""
    if isinstance(result, list | tuple):
        return [_wrap(part, ours) for part in result]
    if not isinstance(result, torch.Tensor):
        return result
    return ours[id(result)] if id(result) in ours else DeviceTensor(result)

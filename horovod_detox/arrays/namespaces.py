"""Arrays of NumPy, torch and TensorFlow behind one small namespace; imports no framework.

Arrays in main memory are computed on as NumPy views without a copy, whatever framework made them,
so all frameworks give the same bits there. Torch tensors on an accelerator stay where they are;
TensorFlow's, which cannot be written to, are computed on in main memory.
"""

import math
import sys
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, Protocol, cast

import numpy as np

from horovod_detox.arrays.nh import Key

Array = Any
"""An array of NumPy, or a tensor of torch or TensorFlow."""
Vector = Array
"""`(d,)` numbers."""
Votes = Array
"""`(n, d)` numbers: n votes, or what became of them."""
Words = Array
"""`(w,)` of int64, of NumPy or torch: what collectives carry, the bits of elements of any dtype."""
Copy = Words
"""`(w,)` words: one rank's copy of its group's gradient."""

ALIGNMENT = 64


class Kernels(Protocol):
    """Column kernels: reduce m rows `(b,)` to one, column by column; see `host_kernels`."""

    def mean(self, rows: Any) -> Any: ...
    def weighted_sum(self, rows: Any, shares: Sequence[float], previous: Any = None) -> Any: ...
    def trimmed_mean(self, rows: Any, ranks: range, kept: int | None = None) -> Any: ...
    def sign_majority(self, rows: Any) -> Any: ...
    def gram(self, rows: Any, reference: Any, centre: Any) -> np.ndarray: ...


class Namespace(Protocol):
    """What the aggregators need of a framework beyond operators and indexing.

    To support another framework's device arrays, write this class for it and name it in
    `namespace`, `view`, `to_numpy` and `like`.
    """

    block: int
    """Columns worked on at a time: so many that a block of votes stays in the cache."""

    @property
    def kernels(self) -> Kernels: ...
    @property
    def threads(self) -> int: ...
    def empty(self, shape: tuple[int, ...], like: Array, dtype: str) -> Array: ...
    def cast(self, array: Array, dtype: str) -> Array: ...
    def copy(self, array: Array) -> Array: ...
    def bounds(self, array: Array) -> tuple[Array, Array]: ...
    def digests(
        self, slices: Sequence[Array], key: Key, dtype: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def same(self, a: Array, b: Array, bounds: Sequence[tuple[int, int]]) -> np.ndarray: ...


class NumPyNamespace:
    """NumPy, for everything that lies in main memory."""

    block = 1 << 16
    copy = staticmethod(np.copy)

    @cached_property
    def kernels(self) -> Kernels:
        from horovod_detox.arrays import host_kernels

        return host_kernels

    @property
    def threads(self) -> int:
        return self.kernels.thread_budget()  # type: ignore[attr-defined]

    def empty(self, shape: tuple[int, ...], like: np.ndarray, dtype: str) -> np.ndarray:
        return aligned_empty(shape, dtype)

    def cast(self, array: np.ndarray, dtype: str) -> np.ndarray:
        return np.ascontiguousarray(array, _dtype(dtype))

    def bounds(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the greatest value of each row; NaN where a row has one."""
        return array.min(axis=1), array.max(axis=1)

    def digests(
        self, slices: Sequence[np.ndarray], key: Key, dtype: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Digest slices of words, and say of which a glance shows that they are finite."""
        from horovod_detox.arrays import host_digests

        return host_digests.digests(slices, key, dtype)

    def same(self, a: np.ndarray, b: np.ndarray, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
        """Say of which slices of words the bits are equal: `(slices,)` of bool."""
        if np.array_equal(a, b):
            return np.ones(len(bounds), bool)
        return np.array([np.array_equal(a[start:stop], b[start:stop]) for start, stop in bounds])


class TorchNamespace:
    """Torch, for tensors on an accelerator."""

    block = 1 << 22
    threads = 1

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.copy = torch.clone

    def empty(self, shape: tuple[int, ...], like: Array, dtype: str) -> Array:
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=like.device)

    def cast(self, array: Array, dtype: str) -> Array:
        return array.to(getattr(self._torch, dtype))

    @cached_property
    def kernels(self) -> Kernels:
        from horovod_detox.arrays import device_kernels

        return device_kernels

    def bounds(self, array: Array) -> tuple[Array, Array]:
        return self._torch.aminmax(array, dim=1)

    def digests(
        self, slices: Sequence[Array], key: Key, dtype: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        from horovod_detox.arrays import device_digests

        return to_numpy(device_digests.digests(slices, key)), np.zeros(len(slices), bool)

    def same(self, a: Array, b: Array, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
        equal = a == b
        return to_numpy(self._torch.stack([equal[start:stop].all() for start, stop in bounds]))


_numpy = NumPyNamespace()
_torch_namespace = cache(TorchNamespace)


def aligned_empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return an uninitialised array at an address where every framework can compute in place."""
    size = math.prod(shape) * _dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(_dtype(dtype)).reshape(shape)


def namespace(array: Array) -> Namespace:
    """Return the functions that work on this array."""
    return cast(Namespace, _torch_namespace() if _is_torch(array) else _numpy)


def dtype_name(array: Array) -> str:
    """Return the name of the element type.

    >>> dtype_name(np.zeros(3, np.float16))
    'float16'
    """
    return str(array.dtype).removeprefix("torch.")


def to_numpy(array: Array) -> np.ndarray:
    """Return a NumPy array of the same shape: a view of main memory, a copy from a device.

    bfloat16 becomes `ml_dtypes.bfloat16`. The view of a TensorFlow tensor is read-only.

    Raises:
        TypeError: for anything but a NumPy array or a tensor of torch or TensorFlow that has
            values.
    """
    if isinstance(array, np.ndarray):
        return array
    if _is_tensorflow(array):
        if not hasattr(array, "numpy"):
            raise TypeError("a symbolic tensor has no values yet: pass it to tf.numpy_function")
        return np.asarray(array)
    if not _is_torch(array):
        raise TypeError(
            f"expected a NumPy array or a tensor of torch or TensorFlow, not {type(array).__name__}"
        )
    tensor = array.detach().cpu()
    if dtype_name(tensor) == "bfloat16":
        return tensor.view(sys.modules["torch"].int16).numpy().view(_dtype("bfloat16"))
    return tensor.numpy()


def view(array: Array) -> Array:
    """Return what to compute on: a NumPy view of main memory, or the torch tensor on its device.

    Raises:
        TypeError: for anything but a NumPy array or a tensor of torch or TensorFlow.
    """
    if _is_torch(array) and array.device.type != "cpu":
        return array.detach()
    return to_numpy(array)


def like(original: Array, array: Array) -> Array:
    """Return `array` as the kind of `original` and on its device, without a copy if possible."""
    if _is_tensorflow(original):
        tensorflow = sys.modules["tensorflow"]
        with tensorflow.device(original.device):
            if array.dtype.kind in "iuf" and array.flags.writeable and _is_aligned(array):
                dlpack = tensorflow.experimental.dlpack
                return tensorflow.identity(dlpack.from_dlpack(array.__dlpack__()))
            return tensorflow.convert_to_tensor(array)
    if not _is_torch(original) or _is_torch(array):
        return array
    torch = sys.modules["torch"]
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = array.copy(order="C")
    if dtype_name(array) == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(original.device)


def _is_aligned(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0


def _is_torch(array: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _is_tensorflow(array: Array) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(array, (tensorflow.Tensor, tensorflow.Variable))


@cache
def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)

"""Arrays of several frameworks as NumPy arrays, and back."""

import ml_dtypes
import numpy as np
import pytest

from horovod_detox.arrays.namespaces import (
    aligned_empty,
    dtype_name,
    like,
    namespace,
    to_numpy,
    view,
)
from tests.votes import bits


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_numpy_arrays_are_returned_as_they_are():
    array = np.zeros((2, 3), ml_dtypes.bfloat16)[:, ::2]
    assert to_numpy(array) is array
    assert view(array) is array
    assert like(array, array) is array
    assert dtype_name(array) == "bfloat16"


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool"]
)
def test_tensors_become_views(torch, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    array = to_numpy(tensor)
    assert array.dtype.name == dtype == dtype_name(tensor)
    assert array.astype(float).tolist() == tensor.double().tolist()
    array[1, 2] = 0
    assert tensor[1, 2] == 0
    back = like(tensor, array)
    assert back.dtype == tensor.dtype
    back[0, 1] = 0
    assert tensor[0, 1] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tensors_with_gaps_and_gradients(torch, dtype):
    tensor = torch.arange(12.0).reshape(3, 4).to(getattr(torch, dtype)).requires_grad_()
    part = tensor[:, ::2].T
    array = to_numpy(part)
    assert array.astype(float).tolist() == part.tolist()
    assert np.shares_memory(array, to_numpy(tensor))


def test_bit_patterns_survive(torch):
    patterns = torch.tensor([0x7FC1, -0x3F, 0x0001, -0x8000], dtype=torch.int16)
    tensor = patterns.view(torch.bfloat16)
    assert bits(to_numpy(tensor)) == bits(patterns.numpy())
    assert torch.equal(like(tensor, to_numpy(tensor)).view(torch.int16), patterns)


def test_arrays_that_torch_cannot_view_are_copied(torch):
    original, array = torch.zeros(1), np.arange(4.0)
    array.flags.writeable = False
    assert like(original, array).tolist() == [0, 1, 2, 3]
    assert like(original, np.arange(4.0)[::-1]).tolist() == [3, 2, 1, 0]


def test_a_tensor_on_a_device_stays_there(torch):
    tensor = torch.zeros(2, 3, device="meta")
    assert view(tensor).device.type == "meta"
    empty = namespace(tensor).empty((4,), tensor, "bfloat16")
    assert (empty.device.type, empty.dtype) == ("meta", torch.bfloat16)


def test_other_objects_are_refused():
    for make in (to_numpy, view):
        with pytest.raises(TypeError, match="a tensor of torch or TensorFlow, not list"):
            make([1.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_namespaces_agree(torch, dtype):
    """Every function of the torch namespace gives the bits of the NumPy one."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 50)).astype(dtype)
    s = torch.from_numpy(a)
    ours, theirs = namespace(a), namespace(s)
    assert type(ours) is not type(theirs)
    for cast in ("float16", "bfloat16", "float32", "float64"):
        assert bits(to_numpy(theirs.cast(s, cast))) == bits(ours.cast(a, cast))
    for expected, bound in zip(ours.bounds(a), theirs.bounds(s), strict=True):
        assert bits(to_numpy(bound)) == bits(expected)
    copy = theirs.copy(s)
    copy[0] = 0
    assert s[0].any()


@pytest.fixture
def tf():
    return pytest.importorskip("tensorflow")


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool"]
)
def test_tensorflow_tensors_become_views_and_return(tf, dtype):
    tensor = tf.cast(tf.reshape(tf.range(6), (2, 3)), dtype)
    for kind in (tensor, tf.Variable(tensor)):
        array = to_numpy(kind)
        assert array.dtype.name == dtype == dtype_name(array)
        assert array.astype(float).tolist() == tf.cast(tensor, "float64").numpy().tolist()
        assert view(kind).tolist() == array.tolist()
    assert np.shares_memory(to_numpy(tensor), view(tensor))
    back = like(tensor, np.array(to_numpy(tensor)))
    assert isinstance(back, tf.Tensor)
    assert back.dtype.name == dtype
    assert to_numpy(back).tolist() == to_numpy(tensor).tolist()


def test_symbolic_tensors_are_refused(tf):
    @tf.function
    def aggregate(votes):
        with pytest.raises(TypeError, match=r"has no values yet: pass it to tf\.numpy_function"):
            to_numpy(votes)

    aggregate(tf.zeros((3, 4)))


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float64"])
def test_uninitialised_arrays_are_aligned(dtype):
    for shape in [(), (1,), (1000,), (3, 1001)]:
        array = aligned_empty(shape, dtype)
        assert (array.shape, array.dtype.name) == (shape, dtype)
        assert array.ctypes.data % 64 == 0
        array[...] = 1
    assert aligned_empty((3, 0), dtype).shape == (3, 0)

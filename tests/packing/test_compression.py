"""Compressed gradients of both frontends: what travels, and what is computed from it."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import SignMajority
from horovod_detox.exchange.reference import aggregate_copies

SHAPES = [(3,), (2, 70), (), (0, 4), (5, 1, 13)]


def torch_frontend():
    """Return torch's compressors, and a packing of arrays: (layout, words, unpack)."""
    pytest.importorskip("torch")
    import torch

    from horovod_detox.packing.torch import COMPRESSORS, packing_of

    def pack(arrays, compression, dtypes):
        named = []
        for i, (array, dtype) in enumerate(zip(arrays, dtypes, strict=True)):
            parameter = torch.nn.Parameter(torch.zeros(array.shape, dtype=getattr(torch, dtype)))
            parameter.grad = torch.tensor(array).to(parameter.dtype)
            named.append((f"g{i}", parameter))
        packing = packing_of(named, compression)

        def unpack(words):
            packing.unpack(torch.tensor(words))
            grads = [parameter.grad for _, parameter in named]
            assert [str(grad.dtype) for grad in grads] == [f"torch.{dtype}" for dtype in dtypes]
            return [grad.float().numpy() for grad in grads]

        return packing.layout, packing.pack().numpy().copy(), unpack

    return SimpleNamespace(Compression=SimpleNamespace(**COMPRESSORS), pack=pack)


def tensorflow_frontend():
    """Return the same of TensorFlow, eagerly."""
    pytest.importorskip("tensorflow")
    import tensorflow as tf

    from horovod_detox.packing.tensorflow import COMPRESSORS, packing_of

    def pack(arrays, compression, dtypes):
        named = [
            (f"g{i}", tf.cast(tf.constant(array), dtype))
            for i, (array, dtype) in enumerate(zip(arrays, dtypes, strict=True))
        ]
        packing = packing_of(named, compression)

        def unpack(words):
            tensors = packing.unpack(tf.constant(words))
            assert [tensor.dtype.name for tensor in tensors] == list(dtypes)
            assert [tensor.shape for tensor in tensors] == [tensor.shape for _, tensor in named]
            return [tf.cast(tensor, "float32").numpy() for tensor in tensors]

        return packing.layout, packing.pack().numpy(), unpack

    return SimpleNamespace(Compression=SimpleNamespace(**COMPRESSORS), pack=pack)


def tensorflow_function_frontend():
    """Return the same of TensorFlow, in a graph."""
    frontend = tensorflow_frontend()
    import tensorflow as tf

    from horovod_detox.packing.tensorflow import packing_of

    def pack(arrays, compression, dtypes):
        layout, _, _ = frontend.pack(arrays, compression, dtypes)

        def packing():
            named = [
                (f"g{i}", tf.cast(tf.constant(array), dtype))
                for i, (array, dtype) in enumerate(zip(arrays, dtypes, strict=True))
            ]
            return packing_of(named, compression)

        unpack = tf.function(lambda words: packing().unpack(words))
        words = tf.function(lambda: packing().pack())().numpy()
        return layout, words, lambda w: [tf.cast(t, "float32").numpy() for t in unpack(w)]

    return SimpleNamespace(Compression=frontend.Compression, pack=pack)


FRONTENDS = [torch_frontend, tensorflow_frontend, tensorflow_function_frontend]


@pytest.fixture(params=FRONTENDS, ids=lambda make: make.__name__.removesuffix("_frontend"))
def frontend(request):
    """Run a test on every frontend."""
    return request.param()


def gradients(seed):
    rng = np.random.default_rng(seed)
    return [np.array(rng.normal(size=shape), np.float32) for shape in SHAPES]


def update_of(frontend, compression, votes, dtypes, **fields):
    """Return what groups of one rank make of their gradients, which are their votes."""
    packed = [frontend.pack(vote, compression, dtypes) for vote in votes]
    layout, _, unpack = packed[0]
    plan = Detox(group_size=1, **fields).plan(len(votes))
    outcome = aggregate_copies(plan, layout.buffers, [words for _, words, _ in packed])
    return unpack(outcome.update)


@pytest.mark.parametrize(
    ("name", "expected"), [("fp16", [257, 32.875, 30000]), ("bf16", [256, 33, 29952])]
)
def test_narrow_votes_are_aggregated_in_float32(frontend, name, expected):
    """In float16 2048 + 1 = 2048 and 30000 + ... + 30000 is infinite; in bfloat16 256 + 1 = 256."""
    votes = [[np.array([2048.0, 256.0, 30000.0])]] + [[np.array([1.0, 1.0, 30000.0])]] * 7
    compression = getattr(frontend.Compression, name)
    (mean,) = update_of(frontend, compression, votes, ["float32"], outer="mean")
    assert mean.tolist() == expected


def test_bf16_travels_in_two_bytes(frontend):
    dtypes = ["float32", "float64", "float16", "float32", "bfloat16"]
    layout, words, unpack = frontend.pack(gradients(0), frontend.Compression.bf16, dtypes)
    assert {dtype for _, _, dtype in layout.parameters} == {"bfloat16"}
    assert len(words) == -(-sum(int(np.prod(shape)) for shape in SHAPES) // 4)
    for given, back in zip(gradients(0), unpack(words), strict=True):
        np.testing.assert_allclose(back, given, rtol=2**-7)


@pytest.mark.parametrize(
    "dtypes",
    [["float32"] * 5, ["float32", "bfloat16", "float64", "float16", "float32"]],
    ids=["one dtype", "many dtypes"],
)
def test_signs(frontend, dtypes):
    votes = [gradients(seed) for seed in range(3)]
    layout, words, unpack = frontend.pack(votes[0], frontend.Compression.sign, dtypes)
    length = sum(int(np.prod(shape)) for shape in SHAPES)
    assert len(words) == layout.words == -(-length // 64) + 1
    for given, back in zip(votes[0], unpack(words), strict=True):
        assert np.array_equal(back, np.sign(given))
    update = update_of(frontend, frontend.Compression.sign, votes, dtypes, outer="sign_majority")
    for i, tensor in enumerate(update):
        expected = SignMajority()(np.stack([vote[i].ravel() for vote in votes]))
        assert np.array_equal(tensor.ravel(), expected)


def test_zeros_and_what_is_not_finite(frontend):
    given = [np.array([0.0, -0.0, 3.0, -3.0]), np.array(-1.0)]
    dtypes = ["float32", "bfloat16"]
    _, words, unpack = frontend.pack(given, frontend.Compression.sign, dtypes)
    assert [back.tolist() for back in unpack(words)] == [[1, 1, 1, -1], -1]
    for value in (np.nan, np.inf, -np.inf):
        given[1] = np.array(value)
        _, words, unpack = frontend.pack(given, frontend.Compression.sign, dtypes)
        assert np.isnan(np.concatenate([back.ravel() for back in unpack(words)])).all()


def test_a_captured_group_cannot_send_other_numbers_than_signs(frontend):
    pack = frontend.pack
    layout, words, unpack = pack([np.array([2.0, -2.0])], frontend.Compression.sign, ["float32"])
    lie = words.copy()
    layout.typed(lie)[1][:] = 1.0
    plan = Detox(group_size=1, outer="sign_majority").plan(3)
    outcome = aggregate_copies(plan, layout.buffers, [words, lie, words])
    assert layout.typed(outcome.update)[1].tolist() == [1]
    assert unpack(outcome.update)[0].tolist() == [1, -1]


def test_torch_and_tensorflow_send_the_same_bits():
    dtypes = ["float32", "bfloat16", "float64", "float16", "float32"]
    for name in ("none", "fp16", "bf16", "sign"):
        copies = []
        for make in FRONTENDS:
            frontend = make()
            compression = getattr(frontend.Compression, name)
            copies.append(frontend.pack(gradients(1), compression, dtypes)[1])
        assert np.array_equal(copies[0], copies[1])
        assert np.array_equal(copies[0], copies[2])


def test_torchs_complex_gradients_travel_as_pairs_of_signs():
    pytest.importorskip("torch")
    import torch

    from horovod_detox.packing.torch import Signs, packing_of

    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    unused = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([3 - 2j, -1 + 5j])
    packing = packing_of([("unused", unused), ("weight", weight)], Signs)
    packing.unpack(packing.pack(), factor=3.0)
    assert weight.grad.tolist() == [3 - 3j, -3 + 3j]
    assert unused.grad is not None
    assert unused.grad.tolist() == [3, 3, 3]  # the sign of a missing gradient is 1


def test_torchs_sparse_gradients_have_no_signs():
    pytest.importorskip("torch")
    import torch

    from horovod_detox.packing.torch import Signs, packing_of

    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    packing = packing_of([("embedding", embedding.weight)], Signs)
    with pytest.raises(ValueError, match="the gradient of embedding is sparse"):
        packing.pack()


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
@pytest.mark.parametrize("name", ["none", "fp16"])
def test_horovods_own_compressors_send_the_same_bits(framework, name):
    """The laboratory, which does without Horovod, uses ours."""
    horovod = pytest.importorskip(f"horovod.{framework}")
    frontend = {"torch": torch_frontend, "tensorflow": tensorflow_frontend}[framework]()
    dtypes = ["float32", "bfloat16", "float64", "float16", "float32"]
    ours, theirs = (
        frontend.pack(gradients(1), getattr(compression, name), dtypes)[1]
        for compression in (frontend.Compression, horovod.Compression)
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_the_frontends_offer_ours(framework):
    pytest.importorskip(f"horovod.{framework}")
    packing = import_module(f"horovod_detox.packing.{framework}")
    compression = import_module(f"horovod_detox.{framework}").Compression
    assert (compression.bf16, compression.sign) == (packing.BF16, packing.Signs)

"""The parts of the TensorFlow frontend that need no job."""

import doctest
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from horovod_detox.packing.layout import Layout
from tests.votes import bits

tf = pytest.importorskip("tensorflow")

from horovod_detox.packing.tensorflow import Packing  # noqa: E402
from horovod_detox.tensorflow import metrics, variables  # noqa: E402
from horovod_detox.tensorflow.variables import name_of  # noqa: E402

COMPRESSION = pytest.importorskip("horovod.tensorflow").Compression
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def gradients(*dtypes):
    """Return named tensors of odd sizes with every kind of bits."""
    rng = np.random.default_rng(0)
    tensors = []
    for i, dtype in enumerate(dtypes):
        shape = [(3,), (), (2, 5), (7, 1, 3), (0, 4)][i % 5]
        values = np.array(rng.standard_normal(shape) * 10.0 ** (i - 2))
        if values.size:
            values.flat[0] = [np.nan, -0.0, np.inf][i % 3]
        tensors.append((f"g{i}", tf.cast(tf.constant(values), dtype)))
    return tensors


@pytest.mark.parametrize("dtypes", [DTYPES[:1] * 3, DTYPES[2:3] * 5, DTYPES * 3], ids=len)
@pytest.mark.parametrize("function", [False, True])
def test_packing_and_unpacking_keep_every_bit(dtypes, function):
    named = gradients(*dtypes)

    def there_and_back():
        packing = Packing(named, COMPRESSION.none)
        return packing.pack(), packing.unpack(packing.pack())

    words, back = (tf.function(there_and_back) if function else there_and_back)()
    for (_, tensor), returned in zip(named, back, strict=True):
        assert (returned.shape, returned.dtype) == (tensor.shape, tensor.dtype)
        assert bits(returned.numpy()) == bits(tensor.numpy())
    # The same words as the layout packs them itself, which torch shares.
    layout = Layout(tuple((name, tuple(t.shape), t.dtype.name) for name, t in named))
    by_dtype = {}
    for _, tensor in named:
        by_dtype.setdefault(tensor.dtype.name, []).append(tensor.numpy().ravel())
    expected = layout.pack([np.concatenate(parts) for parts in by_dtype.values()])
    assert bits(words.numpy()) == bits(expected)


def test_compressed_gradients_travel_compressed():
    named = gradients("float32", "float16", "float32")
    packing = Packing(named, COMPRESSION.fp16)
    assert {dtype for _, _, dtype in packing.layout.parameters} == {"float16"}
    back = packing.unpack(packing.pack())
    assert [tensor.dtype.name for tensor in back] == ["float32", "float16", "float32"]
    for (_, tensor), returned in zip(named, back, strict=True):
        expected = tf.cast(tf.cast(tensor, "float16"), tensor.dtype)
        assert bits(returned.numpy()) == bits(expected.numpy())


def test_unknown_shapes_are_refused():
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def pack(gradient):
        with pytest.raises(ValueError, match="kernel has a gradient of unknown shape"):
            Packing([("kernel", gradient)], COMPRESSION.none)

    pack(tf.zeros(3))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sequential/dense/kernel", "0 sequential/dense/kernel"),
        ("sequential_12/dense_3/kernel", "0 sequential/dense/kernel"),
        ("Variable_1:0", "0 Variable"),
        ("layer_norm/v2_scale", "0 layer_norm/v2_scale"),
    ],
)
def test_names_do_not_depend_on_what_a_rank_made_before(given, expected):
    class Variable:
        name = given

    assert name_of(Variable(), 0) == expected


@pytest.mark.parametrize("module", [metrics, variables])
def test_examples_in_docstrings(module):
    """pytest does not look for them where a framework may be missing."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


ONE_PROCESS = """
import os, warnings
import numpy as np, tensorflow as tf, keras
import horovod_detox.tensorflow as hvd
import horovod_detox.keras as hvdk

def threads():
    return len(os.listdir("/proc/self/task"))

tf.config.threading.set_intra_op_parallelism_threads(50)
before = threads()
hvd.init()
assert threads() - before > 40, "the script's threads"
assert (hvd.group(), hvd.group_rank(), hvd.group_size(), hvd.num_groups()) == (0, 0, 1, 1)
hvd.seed_group(7)
assert [int(i) for i in hvd.shard(tf.data.Dataset.range(3))] == [0, 1, 2]
x, y = np.ones((8, 3), "f"), np.zeros((8, 1), "f")
weights = []
for distribute in (lambda o: o, hvdk.DistributedOptimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(distribute(keras.optimizers.Adam(0.1)), "mse")
    callbacks = [hvdk.callbacks.BroadcastGlobalVariablesCallback(0),
                 hvdk.callbacks.MetricAverageCallback(), hvdk.callbacks.FaultReportCallback()]
    model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x))
    tape = hvd.DistributedGradientTape(tape)
    model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    weights.append(model.get_weights())
assert all((a == b).all() for a, b in zip(*weights))
assert hvd.fault_report().steps == 0
import sys
assert "torch" not in sys.modules
"""


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"} | environment,
    )


def test_one_process_trains_plainly_without_torch():
    job = run(ONE_PROCESS)
    assert job.returncode == 0, job.stderr
    assert job.stderr.count("only one rank: it trains without DETOX") == 1


def test_keras_on_another_backend_is_refused():
    pytest.importorskip("torch")
    job = run("import horovod_detox.keras", KERAS_BACKEND="torch")
    assert job.returncode == 1
    assert "Keras runs on torch here" in job.stderr
    assert "horovod_detox.torch" in job.stderr


def test_an_optimizer_of_another_backend_is_refused():
    pytest.importorskip("torch")
    job = run(
        "import keras, horovod_detox.tensorflow as hvd; hvd.init();"
        "hvd.DistributedOptimizer(keras.optimizers.SGD())",
        KERAS_BACKEND="torch",
    )
    assert "RuntimeError: Keras runs on torch here" in job.stderr


@pytest.mark.parametrize(
    ("name", "classes", "shape", "parameters"),
    [
        ("cnn", 10, (28, 28, 1), 61_654),
        ("resnet18", 10, (32, 32, 3), 11_173_962),
        ("vgg13_bn", 100, (32, 32, 3), 9_462_180),
    ],
)
def test_keras_networks_are_those_of_torch(
    name: str, classes: int, shape: tuple[int, ...], parameters: int
) -> None:
    models = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "tf" / "models.py"))
    model = models["MODELS"][name](classes)
    trained = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert trained == parameters
    assert model(np.zeros((2, *shape), np.float32)).shape == (2, classes)

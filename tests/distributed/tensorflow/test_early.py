"""Large gradients of a function leave while others are computed: when, and that no bit changes."""

import gc
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox.exchange.sharded import Sharded
from horovod_detox.tensorflow import early
from horovod_detox.tensorflow.memory import UsedAgain
from tests.distributed.tensorflow.training import everywhere

pytestmark = pytest.mark.usefixtures("small_blocks")
PARTS = {"overlap_bytes": 4096}
STEPS = 4


def variables(dtypes=("float32",) * 5):
    """Return weights of odd sizes, the same on every rank."""
    rng = np.random.default_rng(0)
    return [tf.Variable(tf.cast(rng.standard_normal((37, 19)), dtype)) for dtype in dtypes]


def loss_of(weights, inputs):
    """Go through layers whose gradients are computed from the last to the first."""
    hidden = inputs
    for weight in weights:
        slope = tf.reduce_mean(tf.tanh(tf.cast(weight, tf.float32) * hidden), axis=1)
        hidden = hidden * (1 + tf.reduce_mean(slope))
    return tf.reduce_sum(hidden**2)


def inputs_of(step):
    inputs = np.random.default_rng([step, hvd.group()]).standard_normal((37, 1))
    if step > 0 and hvd.rank() == 1:  # is given other data
        inputs += 1
    return tf.constant(inputs, tf.float32)


def train(weights, **options):
    """Train in a function; return the bits of all weights."""
    rate = keras.optimizers.SGD(0.1, momentum=0.9)

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = loss_of(weights, inputs)
        gradients = hvd.DistributedGradientTape(tape, **options).gradient(loss, weights)
        rate.apply(gradients, weights)

    for number in range(STEPS):
        step(inputs_of(number))
    return str([tf.cast(weight, tf.float64).numpy().tobytes() for weight in weights])


@pytest.fixture
def sent(monkeypatch):
    """Return when parts were sent."""
    times = []
    send = Sharded.send
    monkeypatch.setattr(
        Sharded, "send", lambda self, *a, **k: (times.append(time.monotonic()), send(self, *a, **k))
    )
    return times


@pytest.mark.ranks(6)
@pytest.mark.parametrize(
    ("dtypes", "settings", "options"),
    [
        (("float32",) * 5, {}, {}),
        (("float64", "float32", "bfloat16", "float16", "float32"), {"witnesses": 1}, {}),
        (("float32",) * 5, {"outer": "geometric_median"}, {"compression": hvd.Compression.fp16}),
        (("float32", "float16") * 2, {"momentum": 0.5}, {}),
    ],
)
def test_no_bit_depends_on_how_gradients_leave(start, sent, dtypes, settings, options):
    found = []
    for how in ({"overlap_bytes": 0}, PARTS):
        start(group_size=3, **settings, **how)
        sent.clear()
        found.append(train(variables(dtypes), **options))
        assert (len(sent) > STEPS) == (how == PARTS)
        assert hvd.fault_report().dissents == {1: STEPS - 1}
    assert found[0] == found[1]
    assert len(set(everywhere(found[0]))) == 1


@pytest.mark.ranks(4)
def test_parts_are_sent_before_the_last_gradients_are_there(start, sent, monkeypatch):
    start(group_size=4, **PARTS)
    leave, before_the_last = early.EarlyGradients.leave, []

    def wait_and_leave(self, group, gradients):
        if group == len(self.groups) - 1:
            until = time.monotonic() + 20
            while not sent and time.monotonic() < until:
                time.sleep(0.01)
            before_the_last.append(len(sent))
        leave(self, group, gradients)

    monkeypatch.setattr(early.EarlyGradients, "leave", wait_and_leave)
    train(variables())
    assert len(before_the_last) == STEPS
    assert 1 <= before_the_last[0] < len(sent)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("how", [tf.function, lambda step: step], ids=["function", "eagerly"])
def test_memory_of_updates_is_used_again_once_nobody_holds_them(start, monkeypatch, how):
    start(group_size=4, **PARTS)
    # TensorFlow takes a tensor in place when it begins at such a number of bytes.
    weights = [tf.Variable(tf.ones((64, 64))) for _ in range(3)]
    lend, lent = UsedAgain.lend, []

    def noted(self, words):
        update = lend(self, words)
        lent.append((update.ctypes.data, weakref.ref(update)))
        return update

    monkeypatch.setattr(UsedAgain, "lend", noted)

    @how
    def step(number):
        with tf.GradientTape() as tape:
            loss = tf.add_n([number * tf.reduce_sum(weight**2) for weight in weights])
        return hvd.DistributedGradientTape(tape).gradient(loss, weights)

    gc.disable()  # nothing waits for it
    try:
        kept = [step(tf.constant(float(number))) for number in range(2)]
        values = [[update.numpy().copy() for update in updates] for updates in kept]
        for number in range(2, 8):
            step(tf.constant(float(number)))
    finally:
        gc.enable()
    addresses = [address for address, _ in lent]
    assert len(lent) == 8
    assert len({*addresses[2:]}) <= 2, addresses
    assert sum(update() is not None for _, update in lent) <= 3
    assert not {*addresses[:2]} & {*addresses[2:]}
    for updates, before in zip(kept, values, strict=True):
        np.testing.assert_array_equal([update.numpy() for update in updates], before)
    everywhere("done")


@pytest.mark.ranks(4)
def test_fit_sends_parts_in_each_of_several_steps_of_an_execution(start, sent):
    digests = []
    for settings in ({"overlap_bytes": 0}, PARTS):
        start(group_size=2, outer="mean", **settings)
        sent.clear()
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(30, activation="tanh") for _ in range(3)]
        model = keras.Sequential([keras.Input((20,)), *layers])
        optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.01))
        model.compile(optimizer, "mse", steps_per_execution=2)
        rng = np.random.default_rng(hvd.group())
        inputs, targets = rng.standard_normal((64, 20)), rng.standard_normal((64, 30))
        model.fit(inputs, targets, batch_size=16, shuffle=False, verbose=0)
        assert hvd.fault_report().steps == 4
        assert len(sent) % 4 == 0
        assert (len(sent) > 4) == (settings == PARTS)
        digests.append(str([weight.numpy().tobytes() for weight in model.weights]))
    assert digests[0] == digests[1]
    assert len(set(everywhere(digests[0]))) == 1


@pytest.mark.ranks(4)
def test_a_function_that_fails_midway_leaves_nothing_for_the_next(start, sent, monkeypatch):
    """What others wait for is ended; its update is nobody's."""
    leave, bad, found = early.EarlyGradients.leave, [], []

    def fail_at_the_last(self, group, gradients):
        if bad and group == len(self.groups) - 1:
            raise ValueError("a bad layer")
        leave(self, group, gradients)

    monkeypatch.setattr(early.EarlyGradients, "leave", fail_at_the_last)
    for fails in (False, True):
        start(group_size=4, **PARTS)
        weights = variables()

        @tf.function
        def step(inputs):
            with tf.GradientTape() as tape:
                loss = loss_of(weights, inputs)  # noqa: B023
            gradients = hvd.DistributedGradientTape(tape).gradient(loss, weights)  # noqa: B023
            for weight, gradient in zip(weights, gradients, strict=True):  # noqa: B023
                weight.assign_sub(0.01 * gradient)

        for number in range(3):
            inputs = tf.ones((37, 1)) * (number + 1.0)
            if fails and number == 1:
                bad.append(True)
                with pytest.raises(ValueError, match="a bad layer"):
                    step(5 * inputs)
                bad.clear()
            step(inputs)
        assert hvd.fault_report().dissents == {}
        found.append(str([weight.numpy().tobytes() for weight in weights]))
    assert found[0] == found[1]
    assert len(set(everywhere(found[0]))) == 1


@pytest.mark.ranks(4)
def test_traces_for_other_shapes_share_their_memory(start):
    start(group_size=4, **PARTS)
    weights = variables()

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = sum(loss_of(weights, row[:, None]) for row in tf.unstack(inputs))
        return hvd.DistributedGradientTape(tape).gradient(loss, weights)[0]

    before = len(early._in_use)
    for rows in (1, 2, 1, 3):
        step(tf.ones((rows, 37)))
    assert step.experimental_get_tracing_count() == 3
    assert len(early._in_use) == before + 1


@pytest.mark.ranks(4)
def test_two_networks_in_one_function(start):
    digests = []
    for settings in ({"overlap_bytes": 0}, PARTS):
        start(group_size=2, outer="mean", **settings)
        networks = [variables(), variables()]

        @tf.function
        def step(inputs):
            for weights in networks:  # noqa: B023
                with tf.GradientTape() as tape:
                    loss = loss_of(weights, inputs)
                gradients = hvd.DistributedGradientTape(tape).gradient(loss, weights)
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.assign_sub(0.01 * gradient)

        for number in range(3):
            step(tf.ones((37, 1)) * (number + hvd.group() + 1.0))
        digests.append(str([w.numpy().tobytes() for weights in networks for w in weights]))
    assert digests[0] == digests[1]
    assert len(set(everywhere(digests[0]))) == 1
    assert hvd.fault_report().dissents == {}


@tf.custom_gradient
def late(inputs):
    """Return the inputs, through which gradients go back after a while, another on each rank."""

    def sleep(gradient):
        time.sleep(0.02 * hvd.rank())
        return gradient

    def back(gradient):
        return tf.ensure_shape(tf.numpy_function(sleep, [gradient], tf.float32), gradient.shape)

    return tf.identity(inputs), back


@pytest.mark.ranks(4)
def test_gradients_go_back_through_a_collective_while_others_leave(start, sent):
    def train_together():
        weights = variables()
        rate = keras.optimizers.SGD(0.1)

        @tf.function
        def step(inputs):
            with tf.GradientTape() as tape:
                hidden = tf.tanh(weights[0] * inputs)
                everyones = tf.reshape(late(hvd.allgather(hidden)), (hvd.size(), 37, 19))
                loss = loss_of(weights[1:], tf.reduce_mean(everyones, axis=(0, 2))[:, None])
            gradients = hvd.DistributedGradientTape(tape).gradient(loss, weights)
            rate.apply(gradients, weights)

        for number in range(STEPS):
            step(inputs_of(number))
        return str([weight.numpy().tobytes() for weight in weights])

    found = []
    for how in ({"overlap_bytes": 0}, PARTS):
        start(group_size=1, outer="mean", **how)
        sent.clear()
        found.append(train_together())
        assert (len(sent) > STEPS) == (how == PARTS)
    assert found[0] == found[1]
    assert len(set(everywhere(found[0]))) == 1

"""One wrong bit in what ranks hold alike is named with its cause, and healed: fit and loops."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk

from .held import flip, network, weight_named
from .training import everywhere

pytestmark = pytest.mark.ranks(6)
STEPS, WHEN, SCRUB = 12, 5, 4
WAYS = ("fit", "function", "eager")


def of_adam(name):
    return lambda model: flip(next(v for v in model.optimizer.variables if name in v.path))


FAULTS = {
    "weight": (lambda model: flip(model.trainable_variables[-2]), "state"),
    "row not in use": (lambda model: flip(model.trainable_variables[0], index=55), "state"),
    "moving mean": (lambda model: flip(weight_named(model, "moving_mean")), "state"),
    "first moment": (of_adam("momentum"), "state"),
    "learning rate": (lambda model: flip(model.optimizer.learning_rate), "state"),
    "one number too many": (lambda model: model.layers[3].seed_generator.next(), "random"),
}


class At(keras.callbacks.Callback):
    """Does something to the model before a batch."""

    def __init__(self, does):
        super().__init__()
        self.does, self.seen = does, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.does(batch, self.model)


def states_of(model):
    """Return a digest of all that a rank holds."""
    variables = [*model.variables, *model.optimizer.variables]
    bits = b"".join(np.ascontiguousarray(variable.numpy()).tobytes() for variable in variables)
    return hashlib.sha256(bits).hexdigest()


def train(start, way, fault=None, bad=(), lies=()):
    """Train with a fault in one step, lies in later ones; return digest and report."""
    start(group_size=3 if hvd.size() == 6 else 4, outer="mean", scrub_every=SCRUB)
    keras.utils.set_random_seed(3)
    model = network()
    hvd.broadcast_variables(model.variables, root_rank=0)
    hvd.seed_group(5, model)
    optimizer = hvdk.DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tokens = np.arange(16 * STEPS, dtype=np.int32).reshape(-1, 2) % 7
    labels = (tokens[:, 0] * 5) % 3
    weights = tf.Variable(tf.ones(8))

    def before(step, model):
        if step == WHEN and hvd.rank() in bad and fault:
            fault(model)
        lying = step > WHEN + SCRUB and hvd.rank() in lies
        weights.assign(tf.fill([8], 3.0 if lying else 1.0))

    def step(inputs, labels):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(
                labels, model(inputs, training=True), from_logits=True
            )
            loss = tf.reduce_mean(losses * weights)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    if way == "fit":
        data = tf.data.Dataset.from_tensor_slices((tokens, labels)).batch(8)
        data = data.map(lambda x, y: (x, y, tf.identity(weights)))
        model.fit(data, shuffle=False, verbose=0, callbacks=[At(before)])
    else:
        run = tf.function(step) if way == "function" else step
        for i in range(STEPS):
            before(i, model)
            rows = slice(8 * i, 8 * i + 8)
            run(tf.constant(tokens[rows]), tf.constant(labels[rows]))
    return states_of(model), hvd.fault_report()


def honest(start, way, _kept={}):  # noqa: B006
    """Return the digest of the run without a fault, on all ranks."""
    if way not in _kept:
        state, report = train(start, way)
        assert (report.events, report.causes) == ((), {})
        _kept[way] = everywhere(state)
        assert len(set(_kept[way])) == hvd.num_groups()  # groups draw other random numbers
    return _kept[way]


CASES = [("fit", name, 6) for name in FAULTS] + [
    ("function", "weight", 4),
    ("function", "moving mean", 4),
    ("eager", "first moment", 4),
    ("eager", "one number too many", 4),
]


@pytest.mark.parametrize(
    ("way", "name", "bad"),
    [
        pytest.param(way, name, 0 if i % 2 else -1, marks=pytest.mark.ranks(ranks))
        for i, (way, name, ranks) in enumerate(CASES)
    ],
)
def test_a_fault_is_named_and_healed(start, way, name, bad):
    expected = honest(start, way)
    bad = range(hvd.size())[bad]
    fault, kind = FAULTS[name]
    lies = [2 if not bad else 3 if hvd.size() == 6 else bad - 1]  # a member of the same group
    state, report = train(start, way, fault, [bad], lies)
    assert everywhere(state) == expected
    explained = [event for event in report.events if event.cause and event.ranks == (bad,)]
    assert {event.cause.kind for event in explained} == {kind}
    assert explained[0].cause.is_healed
    assert WHEN <= explained[0].step <= WHEN + SCRUB + 1
    assert report.healed == {bad: 1}
    # Full redundancy again: a lie in the same group is masked, and named.
    cause = {"fit": "data", "function": "compute", "eager": "data or compute"}[way]
    assert report.causes[lies[0]].keys() == {cause}  # in fit, the lie is in the sample weights
    assert report.abstentions == {}


DRILLS = [
    ("fit", "parameters", "state", 6),
    ("fit", "optimizer", "state", 6),
    ("fit", "buffers", "state", 6),
    ("fit", "random/seed_generator", "random", 6),
    ("function", "parameters", "state", 4),
    ("eager", "buffers", "state", 4),
]


@pytest.mark.parametrize(
    ("way", "of", "kind", "bad"),
    [
        pytest.param(way, of, kind, 0 if i % 2 else -1, marks=pytest.mark.ranks(ranks))
        for i, (way, of, kind, ranks) in enumerate(DRILLS)
    ],
)
def test_a_drill_flips_a_bit_that_is_named_and_healed(start, monkeypatch, way, of, kind, bad):
    """Asked for from outside, as by who does not touch the script."""
    expected = honest(start, way)
    bad = range(hvd.size())[bad]
    spec = f"flip_state(of={of!r}, steps=({WHEN}, {WHEN + 1}))@{bad}"
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", spec)
    state, report = train(start, way)
    assert everywhere(state) == expected
    (event,) = [event for event in report.events if event.ranks == (bad,) and event.cause]
    assert (event.cause.kind, event.cause.is_healed) == (kind, True)
    kind, _, part = of.partition("/")
    assert any(name.startswith(kind) and part in name for name in event.cause.what)
    assert WHEN <= event.step <= WHEN + SCRUB + 1
    assert report.healed == {bad: 1}


def test_a_drill_that_strikes_nothing_is_refused(start, monkeypatch):
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", "flip_state(of='buffers/nothing')@0")
    with pytest.raises(ValueError, match="no buffers/nothing is held; there is buffers/"):
        train(start, "function")


def test_other_data_do_not_count_against_a_machine(start):
    expected = honest(start, "function")
    assert expected
    start(group_size=3, outer="mean")
    variable = tf.Variable([1.0, 2.0])
    optimizer = hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1))

    @tf.function
    def step(batch):
        optimizer.apply([batch], [variable])

    for i in range(4):
        step(tf.constant([float(i), 9.0 if i == 2 and hvd.rank() == 0 else 1.0]))
    report = hvd.fault_report()
    assert report.causes == {0: {"data": 1}}
    assert (report.healed, report.hosts_at_fault) == ({}, {})


def fit_at_fault(start, fault, execution=1, eagerly=False):
    """Fit, with a fault of rank 0 in one step or, of all labels, from the start; return causes."""
    start(group_size=3, outer="mean")
    keras.utils.set_random_seed(3)
    model, factor = network(), tf.Variable(1.0)

    def loss(labels, outputs):
        return keras.losses.mean_squared_error(labels, outputs) * factor

    inputs = np.arange(144, dtype=np.int32).reshape(72, 2) % 7
    labels = np.arange(216.0, dtype=np.float32).reshape(72, 3) % 5
    bad = fault if hvd.rank() == 0 else ""
    if bad == "labels":
        labels[8 * 6] += 1
    if bad == "all labels":
        labels += 1

    def before(step, model):
        factor.assign(3.0 if bad == "machine" and step == 6 else 1.0)

    hvd.broadcast_variables(model.variables, root_rank=0)
    hvd.seed_group(5, model)
    optimizer = hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer, loss, steps_per_execution=execution, run_eagerly=eagerly)
    model.fit(inputs, labels, 8, shuffle=False, verbose=0, callbacks=[At(before)])
    report = hvd.fault_report()
    assert report.dissents.keys() == {0}
    assert (report.healed, set(report.hosts_at_fault)) == (
        ({}, set()) if "labels" in fault else ({}, set(report.hosts.values()))
    )
    return report.causes


@pytest.mark.parametrize("execution", [1, 3])
@pytest.mark.parametrize(("fault", "cause"), [("labels", "data"), ("machine", "compute")])
def test_fit_tells_other_data_from_a_bad_machine(start, fault, cause, execution):
    (causes,) = fit_at_fault(start, fault, execution).values()
    assert causes.keys() == {cause}


@pytest.mark.parametrize(("fault", "cause"), [("labels", "data"), ("machine", "compute")])
def test_fit_that_runs_eagerly_tells_them_apart_too(start, fault, cause):
    assert fit_at_fault(start, fault, eagerly=True) == {0: {cause: 1}}


def test_fit_tells_data_that_are_others_from_the_start(start):
    """In the first step the batch is not known yet; the next exchange says it."""
    (causes,) = fit_at_fault(start, "all labels").values()
    assert causes == {"data": 9}


def test_loops_over_data_in_functions(start):
    """With an iterator the batch is seen. In a loop of AutoGraph it is not: nobody is accused."""
    start(group_size=3, outer="mean")
    variable = tf.Variable([1.0, 2.0])
    optimizer = hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1))
    numbers = [1.0, 2.0, 9.0 if hvd.rank() == 0 else 3.0, 4.0]
    data = tf.data.Dataset.from_tensor_slices(numbers)

    @tf.function
    def step(iterator, rate):
        optimizer.apply([next(iterator) * rate * tf.ones(2)], [variable])

    @tf.function
    def epoch(rate):
        for number in data:
            optimizer.apply([number * rate * tf.ones(2)], [variable])

    iterator = iter(data)
    for _ in range(4):
        step(iterator, tf.constant(1.0))
    assert hvd.fault_report().causes == {0: {"data": 1}}
    epoch(tf.constant(1.0))
    assert hvd.fault_report().causes == {0: {"data": 1, "data or compute": 1}}


def test_scrub_heals_what_was_guarded(start):
    start(group_size=3, outer="mean", scrub_every=0)
    variable, average = tf.Variable([1.0, 2.0]), tf.Variable([5.0])
    optimizer = hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1))
    hvd.guard(average)
    for _ in range(3):
        optimizer.apply([tf.ones(2)], [variable])
    if hvd.rank() == 0:
        average.assign([7.0])
        variable.assign([0.0, 0.0])
    report = hvd.scrub()
    assert report.healed == {0: 1}
    assert (average.numpy()[0], len(set(everywhere(variable.numpy().tolist()[0])))) == (5, 1)
    with pytest.raises(TypeError, match="takes variables"):
        hvd.guard(3)

"""Keras 3's optimizers, distributed, keep what Keras users rely on."""

import inspect

import horovod.keras
import horovod.tensorflow
import horovod.tensorflow.keras
import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.keras
import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from horovod_detox.attacks import NaN, Reverse
from tests.distributed.tensorflow.steps import gradients_of, step_by
from tests.distributed.tensorflow.training import (
    BATCH,
    batches,
    digest,
    everywhere,
    fit,
    loss_function,
    model,
    sgd,
    train,
)

pytestmark = pytest.mark.ranks(4)


def test_the_optimizer_stays_what_it_is(start):
    start(group_size=2, outer="mean")
    plain = keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 100), clipnorm=1.0)
    config = plain.get_config()
    optimizer = hvd.DistributedOptimizer(plain)
    assert type(optimizer) is keras.optimizers.AdamW
    assert optimizer.get_config() == config
    assert keras.optimizers.serialize(optimizer)["class_name"] == "AdamW"


def test_learning_rate_schedules(start):
    start(group_size=2, outer="mean")
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [1.0, 0.5, 0.0])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(schedule))
    assert step_by(optimizer, [tf.ones(2)] * 3, tf.Variable([0.0, 0.0])) == [-1.5, -1.5]
    assert int(optimizer.iterations) == 3


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"clipnorm": 1.0}, [-0.6, -0.8]),
        ({"global_clipnorm": 1.0}, [-0.6, -0.8]),
        ({"clipvalue": 1.0}, [-1.0, -1.0]),
        ({"weight_decay": 0.5}, [-3.0, -4.0]),
    ],
)
def test_gradients_are_clipped_after_the_aggregation(start, options, change):
    start(group_size=2, outer="mean")  # groups (0, 2) and (1, 3)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0, **options))
    gradient = gradients_of(*[[6.0, 0.0], [0.0, 8.0]] * 2)  # their mean has the norm 5
    assert step_by(optimizer, [gradient], tf.Variable([0.0, 0.0])) == pytest.approx(change)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"backward_passes_per_step": 2}, [-14.0]),
        ({"backward_passes_per_step": 2, "average_aggregated_gradients": True}, [-7.0]),
        ({"op": hvd.Sum, "backward_passes_per_step": 2}, [-28.0]),
    ],
)
@pytest.mark.parametrize("frontend", [hvdk, horovod_detox.keras])
def test_local_accumulation_exchanges_once(start, frontend, options, change):
    start(group_size=2, outer="mean")
    optimizer = frontend.DistributedOptimizer(keras.optimizers.SGD(1.0), **options)
    passes = [gradients_of([1.0], [3.0], [1.0], [3.0]), gradients_of([4.0], [6.0], [4.0], [6.0])]
    assert step_by(optimizer, passes * 2, tf.Variable([0.0])) == change
    assert hvd.fault_report().steps == 2


def test_kerass_own_accumulation(start):
    start(group_size=2, outer="mean")
    plain = keras.optimizers.SGD(1.0, gradient_accumulation_steps=3, clipvalue=2.5)
    optimizer = hvd.DistributedOptimizer(plain)
    passes = [gradients_of([i], [i + 2], [i], [i + 2]) for i in (0.0, 1.0, 5.0)]  # mean of all: 3
    assert step_by(optimizer, passes, tf.Variable([0.0])) == [-2.5]
    assert hvd.fault_report().steps == 1


def test_accumulation_is_asked_for_once_and_in_time(start):
    start(group_size=2, outer="mean")
    with pytest.raises(ValueError, match="give one of them"):
        hvd.DistributedOptimizer(
            keras.optimizers.SGD(gradient_accumulation_steps=2), backward_passes_per_step=2
        )
    optimizer = keras.optimizers.SGD()
    optimizer.build([tf.Variable([0.0])])
    with pytest.raises(ValueError, match="has not stepped yet"):
        hvd.DistributedOptimizer(optimizer, backward_passes_per_step=2)


@pytest.mark.parametrize("inside", [True, False])
def test_an_overflow_in_one_group_is_skipped_by_all(start, inside):
    """Keras's LossScaleOptimizer skips steps; a rank that did so alone would hang the others."""
    start(group_size=2, outer="mean")
    plain = keras.optimizers.SGD(1.0)
    if inside:
        optimizer = keras.optimizers.LossScaleOptimizer(hvd.DistributedOptimizer(plain), 4.0)
    else:
        optimizer = hvd.DistributedOptimizer(keras.optimizers.LossScaleOptimizer(plain, 4.0))
    overflow = gradients_of([np.inf], [1.0], [np.inf], [1.0])
    variable = tf.Variable([0.0])
    assert step_by(optimizer, [tf.constant([4.0])], variable) == [-1.0]
    assert step_by(optimizer, [gradients_of(*[[8.0], [0.0]] * 2)], variable) == [-1.0]
    assert float(optimizer.dynamic_scale) == 4.0
    # One of two votes is left out as it is not finite; the other counts on all ranks.
    assert step_by(optimizer, [overflow], variable) == [-0.25]
    assert step_by(optimizer, [tf.constant([np.nan])], variable) == [0.0]
    assert float(optimizer.dynamic_scale) == 2.0
    assert (hvd.fault_report().steps, hvd.fault_report().dissents) == (4, {})


def test_mixed_precision_in_fit(start):
    start(group_size=4)
    runs = []
    for attack in (None, NaN(ranks=(2,)), Reverse(ranks=(3,))):
        keras.mixed_precision.set_dtype_policy("mixed_float16")
        try:
            network = fit(hvd.DistributedOptimizer(sgd(), attack=attack), 6, 0)
        finally:
            keras.mixed_precision.set_dtype_policy("float32")
        assert type(network.optimizer) is keras.optimizers.LossScaleOptimizer
        runs.append(digest(network))
    assert len(set(everywhere(runs[0]))) == 1
    assert runs[0] == runs[1] == runs[2] != digest(model())
    assert hvd.fault_report().dissents == {2: 6, 3: 6}


def test_variables_of_several_types_and_without_gradient(start):
    start(group_size=2, outer="mean")
    dtypes = ["float32", "float16", "bfloat16", "float64", "float32"]
    variables = [tf.Variable(tf.zeros((3,), dtype)) for dtype in dtypes]
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    gradients = [tf.fill([3], tf.cast(hvd.group() * 2.0 + i, dtypes[i])) for i in range(4)]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([*gradients, None], variables)
    assert [variable.numpy()[2] for variable in variables] == [-1, -2, -3, -4, 0]


@pytest.mark.parametrize("sparse_as_dense", [False, True])
def test_embeddings(start, sparse_as_dense):
    start(group_size=2, outer="mean")
    table = tf.Variable(tf.zeros((6, 2)))
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sparse_as_dense=sparse_as_dense)
    rows = tf.constant([[1, 1, 2], [2, 4, 4]][hvd.group()])  # of groups 0 and 1

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, rows))
        gradient = tape.gradient(loss, table)
        assert isinstance(gradient, tf.IndexedSlices)
        optimizer.apply([gradient], [table])

    step()
    assert table.numpy()[:, 0].tolist() == [0, -1, -1, 0, -1, 0]


def test_local_variables_stay_on_their_rank(start):
    start(group_size=2, outer="mean")
    mine, ours = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.register_local_var(mine)
    gradients = [gradients_of([2.0], [4.0], [6.0], [8.0]), tf.constant([1.0])]
    optimizer.apply(gradients, [mine, ours])
    assert (mine.numpy(), ours.numpy()) == (-(hvd.rank() + 1), -1)  # divided by two groups


@pytest.mark.parametrize("frontend", [hvd, hvdk])
def test_local_layers(start, frontend):
    start(group_size=2, outer="mean")
    network = model()
    local, shared = network.layers
    optimizer = frontend.PartialDistributedOptimizer(
        sgd(), local_layers=local, scale_local_gradients=False
    )
    fit(optimizer, 3, hvd.group(), network)
    kernels = everywhere([np.asarray(layer.kernel).tobytes() for layer in (local, shared)])
    assert len({kernel for kernel, _ in kernels}) == 2  # groups (0, 2) and (1, 3)
    assert len({kernel for _, kernel in kernels}) == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_models_are_saved_and_loaded_with_or_without_this_package(start, tmp_path):
    start(group_size=2, outer="mean")
    network = fit(hvdk.DistributedOptimizer(keras.optimizers.Adam(0.01)), 5, hvd.group())
    path = tmp_path / f"{hvd.rank()}.keras"
    network.save(path)
    plain = keras.models.load_model(path)
    assert type(plain.optimizer) is keras.optimizers.Adam
    assert not hasattr(plain.optimizer, "detox")
    loaded = hvdk.load_model(path)
    assert int(loaded.optimizer.iterations) == 5
    steps = hvd.fault_report().steps
    for each in (network, loaded):  # go on alike, the state of the optimizer included
        each.fit(*batches(3, hvd.group()), batch_size=BATCH, shuffle=False, verbose=0)
    assert hvd.fault_report().steps == steps + 6
    assert set(everywhere(digest(loaded))) == {digest(network)}


def test_the_arguments_of_horovods_keras_frontends(start):
    start(group_size=2, outer="mean")
    for ours, theirs in (
        (hvd, horovod.tensorflow),
        (hvdk, horovod.tensorflow.keras),
        (horovod_detox.keras, horovod.keras),
    ):
        stock = inspect.signature(theirs.DistributedOptimizer).parameters
        mine = list(inspect.signature(ours.DistributedOptimizer).parameters.values())
        for parameter, expected in zip(mine, stock.values(), strict=False):
            assert parameter.name == expected.name
            assert parameter.default == expected.default
        names = {name for name in dir(theirs) if name[0] != "_"}
        assert all(
            inspect.ismodule(getattr(theirs, name)) or name == "is_version_greater_equal_than"
            for name in names - {*dir(ours)}
        )


def test_optimizers_of_tensorflow_1(start):
    start(group_size=2, outer="mean")
    variable = tf.Variable([0.0])
    optimizer = hvd.DistributedOptimizer(tf.compat.v1.train.GradientDescentOptimizer(1.0))
    optimizer.minimize(
        lambda: variable * gradients_of([1.0], [3.0], [1.0], [3.0]), var_list=[variable]
    )
    assert variable.numpy() == -2
    with pytest.raises(ValueError, match="Keras 3 only"):
        hvd.DistributedOptimizer(
            tf.compat.v1.train.GradientDescentOptimizer(1.0), backward_passes_per_step=2
        )


@pytest.mark.parametrize("way", ["fit", "tape_in_function"])
def test_xla_is_refused_with_the_reason(start, way):
    start(group_size=2, outer="mean")
    optimizer = keras.optimizers.SGD()
    variable = tf.Variable([0.0])
    if way != "tape_in_function":
        hvd.DistributedOptimizer(optimizer)

    @tf.function(jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            loss = variable**2
        if way == "tape_in_function":
            tape = hvd.DistributedGradientTape(tape)
        optimizer.apply([tape.gradient(loss, variable)], [variable])

    def start_training():
        if way == "fit":
            fit(optimizer, 2, 0, jit_compile=True)
        step()

    with pytest.raises(ValueError, match=r"XLA compiles.*jit_compile=False"):
        start_training()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": hvd.Adasum}, "combines gradients pairwise"),
        ({"op": hvd.Min}, "must be Average or Sum"),
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, "op=Average only"),
        ({"backward_passes_per_step": 0}, "must be positive"),
        ({"groups": -1}, "non-negative integer"),
        ({"attack": NaN(ranks=(77,))}, "77"),
    ],
)
def test_bad_arguments(start, arguments, message):
    start(group_size=2, outer="mean")
    with pytest.raises(ValueError, match=message):
        hvd.DistributedOptimizer(sgd(), **arguments)


def test_an_optimizer_that_goes_past_the_exchange_is_an_error(start):
    """Never train unsynchronised in silence, as Horovod's optimizers do with Keras 3."""

    class Unclipped(keras.optimizers.SGD):
        def _backend_apply_gradients(self, grads, trainable_variables):
            self._backend_update_step(grads, trainable_variables, self.learning_rate)

    start(group_size=2, outer="mean")
    optimizer = hvd.DistributedOptimizer(Unclipped(1.0))
    with pytest.raises(RuntimeError, match="Unclipped stepped without clipping its gradients"):
        optimizer.apply([tf.ones(1)], [tf.Variable([0.0])])


def test_what_is_no_optimizer_is_refused(start):
    start(group_size=2, outer="mean")
    with pytest.raises(TypeError, match=r"str is not an optimizer of Keras 3.*DistributedGradient"):
        hvd.DistributedOptimizer("sgd")
    optimizer = hvd.DistributedOptimizer(sgd())
    with pytest.raises(ValueError, match="distributed already"):
        hvd.DistributedOptimizer(optimizer)


def test_two_optimizers_in_one_step(start):
    """As in adversarial networks: each has its own exchange, and they run in order."""
    start(group_size=2, outer="mean")
    variables = [tf.Variable([0.0]), tf.Variable([0.0])]
    optimizers = [hvd.DistributedOptimizer(keras.optimizers.SGD(1.0)) for _ in variables]

    @tf.function
    def step():
        for optimizer, variable, scale in zip(optimizers, variables, (1.0, 10.0), strict=True):
            optimizer.apply([scale * gradients_of([1.0], [3.0], [1.0], [3.0])], [variable])

    step()
    step()
    assert [variable.numpy() for variable in variables] == [-4, -40]
    assert hvd.fault_report().steps == 4


def test_sum_is_the_average_times_the_groups(start):
    start(group_size=2, outer="mean")
    average, total = (train(op=op, way="regress", steps=1) for op in (hvd.Average, hvd.Sum))
    for one, other in zip(average.weights, total.weights, strict=True):
        np.testing.assert_array_equal(2 * one.numpy(), other.numpy())


def test_loss_function_of_the_tests_learns(start):
    """Show that the training of these tests moves: equal bits prove nothing about a standstill."""
    start(group_size=2, outer="mean")
    network = fit(hvd.DistributedOptimizer(sgd()), 10, hvd.group())
    inputs, labels = batches(10, hvd.group())
    before = float(loss_function(labels, model()(inputs)))
    assert float(loss_function(labels, network(inputs))) < 0.8 * before

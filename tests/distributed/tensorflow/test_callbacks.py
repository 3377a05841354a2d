"""Callbacks, states, seeds and data for tf.data and Keras, on real ranks."""

import logging
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.keras
import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from horovod_detox.attacks import Zero
from tests.distributed.tensorflow.training import BATCH, batches, digest, everywhere, model, sgd

pytestmark = pytest.mark.ranks(4)


def fit(network, *callbacks, epochs=1, steps=4, **options):
    """Train on this group's batches with callbacks; return the history."""
    return network.fit(
        *batches(steps, hvd.group()),
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    ).history


def compiled(network, optimizer=None, steps_per_execution=1, **options):
    network.compile(
        hvdk.DistributedOptimizer(optimizer or sgd(), **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return network


def test_broadcast_starts_all_ranks_from_the_root(start):
    start(group_size=2, outer="mean")
    network = compiled(model(seed=hvd.rank()))
    before = everywhere(digest(network))
    assert len(set(before)) == 4
    callback = hvdk.callbacks.BroadcastGlobalVariablesCallback(2)
    fit(network, callback)
    after = everywhere(digest(network))
    assert len(set(after)) == 1
    reference = compiled(model(seed=2))
    fit(reference)
    assert digest(reference) == after[0]


def test_broadcast_aligns_dropout_inside_groups_and_not_across(start):
    start(group_size=2, outer="mean")
    random.seed(hvd.rank())  # from which Keras seeds layers
    network = keras.Sequential(
        [keras.layers.Input((5,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    )
    fit(compiled(network), hvdk.callbacks.BroadcastGlobalVariablesCallback(0))
    assert hvd.fault_report().abstentions == {}
    states = everywhere([int(v.numpy()[0]) for v in network.variables if "seed" in v.name])
    assert states[0] == states[2] != states[1] == states[3]


def test_broadcast_of_a_model_that_is_built_in_the_first_step(start):
    start(group_size=2, outer="mean")
    hvd.seed_group(3)
    layers = [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    network = compiled(keras.Sequential(layers))
    assert not network.built
    fit(network, hvdk.callbacks.BroadcastGlobalVariablesCallback(0))
    assert (hvd.fault_report().steps, hvd.fault_report().abstentions) == (4, {})
    weights = [np.asarray(variable).tobytes() for variable in network.trainable_variables]
    assert everywhere(weights) == [weights] * 4


def test_broadcast_leaves_local_variables(start):
    start(group_size=2, outer="mean")
    network = compiled(model())
    local = network.layers[0].bias
    local.assign([float(hvd.rank())] * 8)
    callback = hvdk.callbacks.BroadcastGlobalVariablesCallback(3, local_variables=[local])
    callback.set_model(network)
    callback.on_train_begin()
    assert local.numpy()[0] == hvd.rank()


def test_metrics_are_averaged_over_groups(start):
    start(group_size=2, outer="mean")
    plain = fit(compiled(model()))
    history = fit(compiled(model()), hvdk.callbacks.MetricAverageCallback())
    of_groups = [everywhere(plain["accuracy"][0])[rank] for rank in (0, 1)]
    assert of_groups[0] != of_groups[1]
    assert history["accuracy"] == [np.mean(of_groups)]
    assert everywhere(history["loss"]) == [history["loss"]] * 4


def test_a_faulty_ranks_metrics_do_not_count(start):
    start(group_size=4)
    callback = hvdk.callbacks.MetricAverageCallback()
    logs = {"loss": 1e9 if hvd.rank() == 3 else 0.25}
    callback.on_epoch_end(0, logs)
    assert logs == {"loss": 0.25}
    with pytest.raises(ValueError, match=r"'accuracy' is missing on ranks \[2\]"):
        callback.on_epoch_end(0, {"loss": 1.0} | ({} if hvd.rank() == 2 else {"accuracy": 1.0}))


def test_warm_up_and_schedules(start):
    start(group_size=1, outer="mean")  # four groups
    warm_up = hvdk.callbacks.LearningRateWarmupCallback(0.4, warmup_epochs=2)
    rates = []
    seen = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(
            float(network.optimizer.learning_rate.numpy())
        )
    )
    network = compiled(model())
    history = fit(network, warm_up, seen, epochs=3, steps=2)
    expected = [0.1 + 0.3 * step / 4 for step in (1, 2, 3, 4)] + [0.4, 0.4]
    assert rates == pytest.approx(expected)
    assert history["lr"] == pytest.approx([expected[1], 0.4, 0.4])
    drop = horovod_detox.keras.callbacks.LearningRateScheduleCallback(0.4, 0.5, start_epoch=1)
    assert fit(network, drop, epochs=4, steps=2)["lr"] == pytest.approx([0.4, 0.4, 0.2, 0.1])
    with pytest.raises(ValueError, match="initial_lr"):
        horovod_detox.keras.callbacks.LearningRateScheduleCallback(None, 0.5)


@pytest.mark.parametrize(
    ("steps", "execution"),
    [
        (5, 2),
        pytest.param(4, 2, marks=pytest.mark.soak),
        pytest.param(3, 7, marks=pytest.mark.soak),
    ],
)
def test_schedules_with_several_steps_per_execution(start, steps, execution):
    start(group_size=1, outer="mean")  # four groups
    rates = []
    seen = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(
            float(network.optimizer.learning_rate.numpy())
        )
    )
    network = compiled(model(), steps_per_execution=execution)
    warm_up = hvdk.callbacks.LearningRateWarmupCallback(0.2, warmup_epochs=2)
    history = fit(network, warm_up, seen, epochs=3, steps=steps)
    ends = [min(end, steps) for end in range(execution, steps + execution, execution)]
    expected = [0.05 + 0.15 * (epoch + end / steps) / 2 for epoch in (0, 1) for end in ends]
    assert rates == pytest.approx(expected + [0.2] * len(ends))
    assert history["lr"][1:] == [float(np.float32(0.2))] * 2
    # A schedule of the script's own: the rate of an execution is that of its first step.
    rates.clear()
    linear = hvdk.callbacks.LearningRateScheduleCallback(0.2, lambda t: 1 - t / 4, staircase=False)
    fit(network, linear, seen, epochs=2, steps=steps)
    begins = range(0, steps, execution)
    expected = [0.2 * (1 - (epoch + begin / steps) / 4) for epoch in (0, 1) for begin in begins]
    assert rates == pytest.approx(expected)


def test_a_warm_up_ends_at_the_initial_rate_though_epochs_are_short(start):
    start(group_size=1, outer="mean")
    warm_up = hvdk.callbacks.LearningRateWarmupCallback(0.2, warmup_epochs=1, steps_per_epoch=9)
    network = compiled(model())
    fit(network, warm_up, epochs=2, steps=2)
    assert float(network.optimizer.learning_rate.numpy()) == np.float32(0.2)


def test_fault_totals_in_the_logs(start, caplog):
    start(group_size=4)
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    network = compiled(model(), attack=Zero(ranks=(1,), steps=(2, 6)))
    history = fit(network, hvdk.callbacks.FaultReportCallback(), epochs=2)
    assert history["dissents"] == [2, 4]
    assert history["abstentions"] == [0, 0]
    assert history["faulty_ranks"] == [1, 1]
    # Rank 0 speaks for all, once.
    assert everywhere(caplog.messages) == [["step 2: group 0 outvoted rank 1"], [], [], []]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_the_best_model_is_saved_once(start, tmp_path):
    start(group_size=2, outer="mean")
    path = tmp_path / "best.keras"
    callback = hvdk.callbacks.BestModelCheckpoint(monitor="loss", filepath=str(path))
    fit(compiled(model()), callback, epochs=2)
    assert everywhere(path.exists()) == [True, False, False, False]


def test_states_save_restore_and_broadcast(start):
    start(group_size=2, outer="mean")
    network = compiled(model(seed=hvd.rank()), keras.optimizers.Adam(0.01))
    state = hvdk.elastic.KerasState(network, epoch=hvd.rank(), batch=0)
    state.sync()
    assert state.epoch == 0
    assert len(set(everywhere(digest(network)))) == 1
    fit(network)
    state.commit()
    committed = digest(network), int(network.optimizer.iterations)
    state.epoch = 7
    fit(network)
    assert digest(network) != committed[0]
    state.restore()
    assert (digest(network), int(network.optimizer.iterations)) == committed
    assert state.epoch == 0
    fit(network)
    again = digest(network)
    state.restore()
    fit(network)  # with the optimizer's state as it was
    assert digest(network) == again


def test_states_of_plain_variables(start):
    start(group_size=2, outer="mean")
    variable = tf.Variable([float(hvd.rank()), 1.0])
    state = hvd.elastic.TensorFlowState([variable], step=hvd.rank() + 5)
    variable.assign([9.0, 9.0])
    state.restore()
    assert variable.numpy()[0] == hvd.rank()
    state.sync()
    assert (variable.numpy()[0], state.step) == (0, 5)
    with pytest.raises(ValueError, match="must be built"):
        hvdk.elastic.KerasState(keras.Sequential([keras.layers.Dense(1)]))


def test_broadcast_variables_takes_all_kinds(start):
    start(group_size=2, outer="mean")
    for inplace in (False, True):
        kinds = [tf.Variable(hvd.rank() + 1.0), keras.Variable([hvd.rank() + 2.0])]
        hvd.broadcast_variables(kinds, root_rank=3, inplace=inplace)
        assert [float(np.asarray(kind).ravel()[0]) for kind in kinds] == [4, 5]


def test_seeds_agree_inside_a_group_and_differ_across(start):
    start(group_size=2, outer="mean")
    old = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dropout(0.5)])
    hvd.seed_group(1234, old)
    new = keras.layers.Dropout(0.5)
    ones = tf.ones((1, 64))
    draws = [
        random.random(),
        float(np.random.rand()),
        tf.random.uniform([2]).numpy().tolist(),
        keras.random.uniform((2,)).numpy().tolist(),
        new(ones, training=True).numpy().tolist(),
        old.layers[0](ones, training=True).numpy().tolist(),
    ]
    by_rank = everywhere(draws)
    for draws_0, draws_1, draws_2, draws_3 in zip(*by_rank, strict=True):
        assert draws_0 == draws_2 != draws_1 == draws_3


def elements(dataset) -> list[int]:
    return [int(element) for element in dataset]


def test_shards_are_equal_inside_groups_and_disjoint_across(start):
    start(group_size=2, outer="mean")
    numbers = tf.data.Dataset.range(12)
    hvd_shards = {
        "in order": lambda: hvd.shard(numbers),
        "shuffled before": lambda: hvd.shard(numbers.shuffle(12, seed=3).map(lambda x: x)),
    }
    for make in hvd_shards.values():
        dataset = make()
        for _ in range(2):
            seen = everywhere(elements(dataset))
            assert seen[0] == seen[2]
            assert seen[1] == seen[3]
            assert sorted(seen[0] + seen[1]) == list(range(12))
    hvd.seed_group(7)
    shuffled = hvd.shard(numbers).shuffle(6)
    epochs = [everywhere(elements(shuffled)) for _ in range(2)]
    for seen in epochs:
        assert seen[0] == seen[2]
        assert seen[1] == seen[3]
        assert sorted(seen[0] + seen[1]) == list(range(12))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("seeded_by_group", [False, True])
def test_a_shuffle_that_would_make_shares_overlap_is_refused(start, seeded_by_group):
    start(group_size=2, outer="mean")
    tf.random.set_seed(None)
    if seeded_by_group:
        hvd.seed_group(7)
    dataset = tf.data.Dataset.range(12).shuffle(12, seed=3 if seeded_by_group else None).batch(2)
    with pytest.raises(ValueError, match=r"shuffled in an order that differs.*after shard"):
        hvd.shard(dataset)


@pytest.mark.parametrize("count", [45, 44])
def test_shares_are_even(start, caplog, count):
    start(group_size=2, outer="mean")
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    dataset = hvd.shard(tf.data.Dataset.range(count))
    assert everywhere(int(dataset.cardinality())) == [22] * 4
    seen = everywhere(elements(dataset))
    assert seen[0] == seen[2] == list(range(0, 44, 2))
    assert seen[1] == seen[3] == list(range(1, 44, 2))
    told = ["the last element is left out, so that 2 groups get equally many"]
    assert caplog.messages == (told if count == 45 and hvd.rank() == 0 else [])


def pairs(numbers, size):
    """Return a dataset of inputs and labels of this rank, in batches."""
    inputs, labels = batches(2, hvd.group())
    count = numbers[hvd.group()]
    return tf.data.Dataset.from_tensor_slices((inputs[:count], labels[:count])).batch(size)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras's, of unknown lengths
def test_uneven_epochs_are_refused_at_once_or_explained(start):
    start(group_size=2, outer="mean", timeout=10.0)
    with pytest.raises(
        ValueError,
        match=r"batches in an epoch: 11 on ranks \[1, 3\], 12 on ranks \[0, 2\]. They would wait",
    ):
        compiled(model()).fit(pairs((23, 22), 2), shuffle=False, verbose=0)
    # Nobody knows how many there are: the side that is done says, in the end, what it waits for.
    unknown = pairs((24, 22), 2).filter(lambda inputs, labels: True)
    text = (
        r"end of an epoch: do all ranks have equally many batches"
        if hvd.group()
        else "in different places"
    )
    with pytest.raises(Exception, match=text):
        compiled(model()).fit(unknown, shuffle=False, verbose=0)
    everywhere("all have ended")  # the watch gives each wait its limit, which is one of this test


def test_what_will_differ_is_said_before_the_first_step(start, caplog):
    start(group_size=2, outer="mean")
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    honest = pairs((8, 8), 2).map(lambda inputs, labels: (2 * inputs, labels), num_parallel_calls=2)
    compiled(model()).fit(honest, shuffle=False, verbose=0)
    hvd.shard(honest)
    assert caplog.messages == []

    def noisy(inputs, labels):
        return inputs + 0 * tf.random.normal(tf.shape(inputs)), labels

    def fit_to(data):
        compiled(model()).fit(data, shuffle=False, verbose=0)

    for give in (hvd.shard, fit_to):
        start(group_size=2, outer="mean")
        caplog.clear()
        for _ in range(2):
            give(pairs((4, 4), 2).map(noisy, num_parallel_calls=2))
        told = [
            text for text in caplog.messages if "draws random numbers in a parallel map" in text
        ]
        assert len(told) == (1 if hvd.rank() == 0 else 0)
    start(group_size=1, outer="mean")
    caplog.clear()
    hvd.shard(pairs((2, 2, 2, 2), 1).repeat(4).map(noisy, num_parallel_calls=2))
    assert caplog.messages == []  # nobody is compared

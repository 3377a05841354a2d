"""The promise, on real ranks: liars change no bit of the trajectory and are named."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox import attacks
from horovod_detox.exchange import EXCHANGES, owners
from horovod_detox.exchange.step import NoMajority
from tests.distributed.tensorflow.training import (
    BATCH,
    STEPS,
    WAYS,
    adam,
    batches,
    digest,
    everywhere,
    fit,
    loss_function,
    model,
    sgd,
    train,
)

# A frontend sees neither rule nor attack, only the kind of work they make; all of both are in
# tests/test_trajectory.py. What sees its own gradient, remembers others, sees all ranks', is NaN.
ATTACKS = ["reverse", "stale", "a_little_is_enough", "nan"]
# Columns are every other test's; the Gram matrix, and a centre.
RULES = ["geometric_median", "centered_clipping(radius=0.1)"]

KERAS_WAYS = [(way, sgd) for way in WAYS if way != "regress"] + [("fit", adam)]

fair_runs: dict[tuple[str, str, str], str] = {}


def fair_run(start, outer, make_optimizer=sgd, way="regress"):
    """Return the digest of the run without liars; one for all ways that train the same model."""
    way = "regress" if way == "regress" else "fit"
    key = (outer, make_optimizer.__name__, way)
    if key not in fair_runs:
        start(group_size=3, outer=outer)
        fair_runs[key] = digest(train(make_optimizer, way=way))
        assert hvd.fault_report().dissents == {}
        assert set(everywhere(fair_runs[key])) == {fair_runs[key]}
    return fair_runs[key]


def check_masked(start, attack, outer="median", make_optimizer=sgd, way="regress", steps=STEPS):
    expected = fair_run(start, outer, make_optimizer, way)
    start(group_size=3, outer=outer)
    network = train(make_optimizer, way=way, attack=attack)
    assert set(everywhere(digest(network))) == {expected}
    assert hvd.fault_report().dissents == dict.fromkeys(attack.ranks, steps)
    assert everywhere(hvd.fault_report()) == [hvd.fault_report()] * hvd.size()


@pytest.mark.ranks(6)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_kind_of_attack_is_masked(start, name):
    # Groups (0, 2, 4) and (1, 3, 5): one liar in each.
    steps = (
        STEPS - 1 if name == "stale" else STEPS
    )  # in the first step there is nothing older to send
    check_masked(start, attacks.by_name(name, ranks=(1, 4)), steps=steps)


@pytest.mark.ranks(6)
@pytest.mark.parametrize("outer", RULES)
def test_every_kind_of_rule_is_masked(start, outer):
    check_masked(start, attacks.Reverse(scale=100, ranks=(0, 5)), outer)


@pytest.mark.ranks(6)
@pytest.mark.parametrize(("way", "make_optimizer"), KERAS_WAYS)
def test_every_way_to_train_has_the_same_trajectory(start, way, make_optimizer):
    """Keras's fit, loops with the optimizer and loops with the tape, eagerly and traced."""
    attack = attacks.BitFlip(count=3, ranks=(2, 3))
    check_masked(start, attack, way=way, make_optimizer=make_optimizer)


@pytest.mark.ranks(6)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_exchange_has_the_same_trajectory(start, exchange):
    expected = fair_run(start, "median")
    start(group_size=3, exchange=exchange)
    network = train(way="regress", attack=attacks.Gaussian(ranks=(2, 3)))
    assert hvd.fault_report().dissents == {2: STEPS, 3: STEPS}
    assert set(everywhere(digest(network))) == {expected}


@pytest.mark.ranks(6)
def test_with_momentum_liars_are_masked(start):
    start(group_size=3, momentum=0.9)
    expected = digest(train(way="regress"))
    assert expected != fair_run(start, "median")
    for exchange in EXCHANGES:
        start(group_size=3, momentum=0.9, exchange=exchange)
        network = train(way="regress", attack=attacks.Reverse(scale=100, ranks=(1, 4)))
        assert set(everywhere(digest(network))) == {expected}
        assert hvd.fault_report().dissents == {1: STEPS, 4: STEPS}


@pytest.mark.ranks(6)
def test_a_rank_that_aggregates_wrongly_is_named_by_its_witnesses(start, monkeypatch):
    start(group_size=2, outer="median")
    expected = digest(train(way="regress"))
    if hvd.rank() == 1:
        rightly = owners.aggregate_votes

        def wrongly(rule, parts, updates, *args):
            means = rightly(rule, parts, updates, *args)
            for update in updates:
                update ^= 1
            return means

        monkeypatch.setattr(owners, "aggregate_votes", wrongly)
    start(group_size=2, outer="median", witnesses=2)
    network = train(way="regress")
    assert set(everywhere(digest(network))) == {expected}
    assert hvd.fault_report().miscalculations == {1: STEPS}


@pytest.mark.ranks(6)
def test_noise_within_the_tolerance_accuses_nobody_and_liars_are_named(start):
    def updates(**settings):
        start(group_size=3, outer="mean", **settings)
        weights = tf.Variable(tf.zeros((5, 3)))
        found = []
        for step in range(3):
            with tf.GradientTape() as tape:
                factor = (1 + hvd.group() + step) * (1 + 1e-7 * hvd.rank())
                loss = tf.reduce_sum((weights + 1) ** 2) * factor
            tape = hvd.DistributedGradientTape(
                tape, attack=attacks.Reverse(scale=100, ranks=(1, 4))
            )
            found.append(tape.gradient(loss, weights).numpy())
        return np.stack(found)

    with pytest.raises(NoMajority, match="do not compute the same bits"):
        updates()
    found = updates(tolerance=1e-5)
    assert len(set(everywhere(found.tobytes()))) == 1
    assert hvd.fault_report().dissents == {1: 3, 4: 3}
    np.testing.assert_allclose(found[:, 0, 0], [3, 5, 7], rtol=3e-6)


@pytest.mark.ranks(6)
def test_without_the_vote_the_same_attack_changes_the_trajectory(start):
    """Show that the tests above can fail."""
    expected = fair_run(start, "mean")
    start(group_size=1, outer="mean")
    network = train(
        way="regress", shard=hvd.rank() % 2, attack=attacks.Reverse(scale=100, ranks=(1, 4))
    )
    assert digest(network) != expected


@pytest.mark.ranks(4)
@pytest.mark.parametrize(("way", "make_optimizer"), [("fit", adam), ("tape_in_function", sgd)])
def test_plain_averaging_equals_averaging_by_hand(start, way, make_optimizer):
    start(group_size=1, outer="mean")
    network = train(make_optimizer, way=way)
    for ours, theirs in zip(network.weights, by_hand(make_optimizer), strict=True):
        assert np.abs(np.asarray(ours) - theirs).max() <= 1e-6 * np.abs(theirs).max()


@functools.cache
def by_hand(make_optimizer, steps=STEPS):
    """Return the weights after training on the batches of all ranks, without Horovod."""
    optimizer, network = make_optimizer(), model()
    data = [batches(steps, shard) for shard in range(hvd.size())]
    for step in range(steps):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        by_shard = []
        for inputs, labels in data:
            with tf.GradientTape() as tape:
                loss = loss_function(labels[rows], network(inputs[rows]))
            by_shard.append(tape.gradient(loss, network.trainable_variables))
        mean = [tf.add_n(gradients) / hvd.size() for gradients in zip(*by_shard, strict=True)]
        optimizer.apply(mean, network.trainable_variables)
    return network.get_weights()


@pytest.mark.ranks(4)
def test_fit_keeps_replicas_with_different_data_in_sync(start):
    """Stock Horovod does not: its optimizers never see the gradients of Keras 3."""
    import horovod.tensorflow.keras as stock

    start(group_size=2, outer="mean")
    ours = fit(hvd.DistributedOptimizer(sgd()), 10, hvd.group())
    assert len(set(everywhere(digest(ours)))) == 1
    theirs = fit(stock.DistributedOptimizer(sgd()), 10, hvd.group())
    assert len(set(everywhere(digest(theirs)))) == hvd.num_groups()


@pytest.mark.ranks(4)
def test_in_groups_of_two_a_fault_is_found_and_nobody_is_blamed(start):
    start(group_size=2, outer="mean")  # groups (0, 2) and (1, 3)
    network = train(attack=attacks.BitFlip(ranks=(3,), steps=(4, 6)))
    report = hvd.fault_report()
    assert (report.dissents, report.abstentions) == ({}, {1: 2})
    assert [(event.step, event.ranks) for event in report.events] == [(4, (1, 3)), (5, (1, 3))]
    assert len(set(everywhere(digest(network)))) == 1


@pytest.mark.ranks(4)
def test_steps_per_execution(start):
    start(group_size=4)
    expected = digest(train())
    start(group_size=4)
    optimizer = hvd.DistributedOptimizer(sgd(), attack=attacks.NaN(ranks=(2,)))
    network = fit(optimizer, STEPS, 0, steps_per_execution=5)
    assert digest(network) == expected
    assert hvd.fault_report().dissents == {2: STEPS}


@pytest.mark.ranks(4)
def test_convolutions_dropout_and_batch_normalisation(start):
    """The layers that have states of their own, or kernels that might not be deterministic."""
    start(group_size=2, outer="mean")
    hvd.seed_group(5)
    network = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Dropout(0.3),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    hvd.broadcast_variables(network.weights, root_rank=0)
    images = np.random.default_rng(hvd.group()).standard_normal((64, 8, 8, 1)).astype(np.float32)
    network.compile(hvd.DistributedOptimizer(adam()), loss_function)
    network.fit(images, np.arange(64) % 3, batch_size=16, verbose=0)
    assert hvd.fault_report().steps == 4
    assert hvd.fault_report().abstentions == {}
    weights = [np.asarray(variable).tobytes() for variable in network.trainable_variables]
    assert everywhere(weights) == [weights] * hvd.size()

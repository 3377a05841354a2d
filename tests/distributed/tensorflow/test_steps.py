"""Steps beside exchanges: none is made with gradients that were not exchanged, or by some ranks."""

import keras
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvd_keras
from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.tensorflow.context import context
from horovod_detox.vote.work import Work
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


@pytest.mark.parametrize("way", ["fit", "fit_eagerly", "optimizer_in_function"])
def test_the_report_counts_steps_and_exchanges(start, way):
    start(group_size=2)
    train(way=way, steps=3)
    train(way=way, steps=4)
    train(way="regress", steps=2)
    report = hvd.fault_report()
    assert report.optimizers == (Work("SGD", 3, 3), Work("SGD", 4, 4), Work("tapes", 2, None))
    assert str(report).endswith("of 9 steps; SGD: 7 steps in 7 exchanges; tapes: 2 exchanges")


def test_gradients_that_are_accumulated_count_once(start):
    start(group_size=2)
    train(steps=6, backward_passes_per_step=3)
    assert hvd.fault_report().optimizers == (Work("SGD", 2, 2),)


def test_an_optimizer_around_others_counts_its_steps(start):
    start(group_size=2)
    inner = sgd()
    train(lambda: keras.optimizers.MultiOptimizer(lambda variable: inner), steps=3)
    (work,) = hvd.fault_report().optimizers
    assert (work.exchanges, work.steps) == (3, 3)


def test_a_rank_that_leaves_a_step_out_is_named_at_the_next_exchange(start):
    start(group_size=4)
    optimizer, variable = hvd.DistributedOptimizer(sgd()), tf.Variable([1.0])
    update = optimizer._backend_update_step
    for step in range(4):
        if (step, hvd.rank()) == (1, 2):
            optimizer._backend_update_step = lambda *args: None
        optimizer.apply([tf.constant([1.0])], [variable])
        optimizer._backend_update_step = update
    report = hvd.fault_report()
    assert report.out_of_step == {2: 1}
    assert [(event.step, event.kind) for event in report.events] == [
        (2, "out_of_step"),
        (2, "drift"),
    ]
    assert everywhere(variable.numpy().tolist()) == [variable.numpy().tolist()] * 4


def test_a_model_whose_optimizer_is_wrapped_after_a_first_fit_exchanges(start):
    start(group_size=2, outer="mean")
    network = model()
    network.compile(sgd(), loss_function, jit_compile=False)
    inputs, labels = batches(4, hvd.group())
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    network.fit(inputs[:BATCH], labels[:BATCH], **options)
    assert len(set(everywhere(digest(network)))) == 2
    hvd.broadcast_variables(network.variables, 0)
    hvd.broadcast_variables(network.optimizer.variables, 0)
    hvd_keras.DistributedOptimizer(network.optimizer)
    network.fit(inputs, labels, **options)
    network.train_on_batch(inputs[:BATCH], labels[:BATCH])
    assert hvd.fault_report().optimizers == (Work("SGD", 5, 5),)
    assert len(set(everywhere(digest(network)))) == 1


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of NumPy, in Keras' save
def test_a_model_that_one_rank_alone_loads_is_in_nobodys_way(start, tmp_path):
    start(group_size=2)
    network = train(steps=2)
    if hvd.rank() == 0:
        network.save(tmp_path / "model.keras")
        loaded = hvd_keras.load_model(tmp_path / "model.keras")
        loaded.evaluate(*batches(1, 0), verbose=0)
    again = train(steps=2)
    assert len(set(everywhere(digest(again)))) == 1
    assert not hvd.fault_report().events


def test_a_second_init_goes_on_with_the_account(start):
    start(group_size=4)
    settings = context.session().config
    for _ in range(2):
        train(way="regress", steps=2, shard=7 if hvd.rank() == 1 else 0)
        hvd.init()
        if hvd.rank() == 2:  # needs nobody else
            hvd.init(detox=settings)
    assert hvd.fault_report().dissents == {1: 4}
    assert hvd.fault_report().steps == 4


@pytest.mark.parametrize("function", [True, False])
def test_weights_may_be_broadcast_after_the_first_step(start, function):
    """Horovod's recipe for tapes; the ranks seed their weights by rank."""
    start(group_size=2)
    network, optimizer = model(seed=hvd.rank()), sgd()
    optimizer.build(network.trainable_variables)
    inputs, labels = batches(3, hvd.group())

    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = loss_function(labels, network(inputs))
        tape = hvd.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))

    step = tf.function(step) if function else step
    for number in range(3):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        step(tf.constant(inputs[rows]), tf.constant(labels[rows]))
        if number == 0:
            hvd.broadcast_variables(network.variables, root_rank=0)
            hvd.broadcast_variables(optimizer.variables, root_rank=0)
    assert len(set(everywhere(digest(network)))) == 1
    assert not hvd.fault_report().events


def test_weights_that_are_never_broadcast_are_refused_in_the_second_step(start):
    start(group_size=2)
    with pytest.raises(RanksDisagree, match="different weights in the second step: broadcast"):
        fit(hvd_keras.DistributedOptimizer(sgd()), 3, hvd.group(), model(seed=hvd.rank()))

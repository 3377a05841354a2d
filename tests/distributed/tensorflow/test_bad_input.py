"""Bad input is a clear error on every rank, within seconds; ranks stay in step after it."""

import traceback

import horovod.tensorflow as stock
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox import Detox
from horovod_detox.determinism.first_step import NotDeterministic
from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.exchange.step import NoMajority
from horovod_detox.exchange.waits import ExchangeTimeout
from tests.distributed.tensorflow.training import everywhere, fit, sgd, train

pytestmark = pytest.mark.ranks(4)


@pytest.fixture(autouse=True)
def still_together():
    """Check after every error that the ranks are alive and in step."""
    yield
    assert stock.allgather_object(stock.rank(), name="together") == list(range(stock.size()))


def exchange(gradient, variable=None):
    """Exchange a gradient eagerly."""
    variable = tf.Variable(tf.zeros(gradient.shape)) if variable is None else variable
    optimizer = hvd.DistributedOptimizer(sgd())
    optimizer.apply([gradient], [variable])
    return variable


def test_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="4 ranks cannot form a group of 9"):
        hvd.init(detox=Detox(group_size=9))
    with pytest.raises(RuntimeError, match="is not initialised"):
        hvd.group()


def test_settings_that_differ_name_the_field_and_the_ranks():
    outer = "mean" if stock.rank() == 2 else "median"
    with pytest.raises(
        ValueError, match="outer is 'median' on ranks 0, 1, 3 but 'mean' on ranks 2"
    ):
        hvd.init(detox=Detox(group_size=2, outer=outer))


def test_settings_and_attack_from_the_environment(monkeypatch):
    monkeypatch.setenv("HOROVOD_DETOX_GROUP_SIZE", "4")
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", "reverse(scale=10)@2")
    hvd.init()
    fit(hvd.DistributedOptimizer(sgd()), 3, 0)
    assert hvd.fault_report().dissents == {2: 3}


def test_variables_that_differ_between_ranks(start):
    start(group_size=2)
    with pytest.raises(
        RanksDisagree, match=r"rank 0 has .* \[1\] float32 where rank 1 has .* \[2\]"
    ):
        exchange(tf.ones(2 if hvd.rank() else 1))


def test_no_majority_in_any_group(start):
    start(group_size=2)
    with pytest.raises(NoMajority, match=r"every group lost its majority.*seed_group"):
        exchange(tf.fill([3], float(hvd.rank())))


@pytest.mark.parametrize("way", ["fit", "tape_in_function"])
def test_errors_of_traced_functions_are_what_they_are(start, way):
    """TensorFlow's own error has what happened behind a page on where an operation was made."""
    start(group_size=2)
    with pytest.raises(NotDeterministic, match=r"^no update in this step: every group") as info:
        train(way=way, steps=1, shard=hvd.rank())
    assert info.value.__suppress_context__
    told = "".join(traceback.format_exception(info.value))
    assert told.count("every group lost its majority") == 1
    assert "Graph execution error" not in told
    assert "numpy_function" not in told


def test_other_errors_of_traced_functions_stay_what_they_are(start):
    start(group_size=2)
    with pytest.raises(NotDeterministic):
        train(way="optimizer_in_function", steps=1, shard=hvd.rank())

    @tf.function
    def fail(number):
        tf.debugging.assert_equal(number, 1, "not of an exchange")

    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match="not of an exchange"):
            fail(tf.constant(2))


def test_no_gradient_at_all(start):
    start(group_size=2)
    optimizer = hvd.DistributedOptimizer(sgd())
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None], [tf.Variable([0.0])])


def test_gradients_of_integers_are_refused(start):
    start(group_size=2)
    optimizer = hvd.DistributedOptimizer(sgd())
    with pytest.raises(ValueError, match="is complex64, but must be one of float16"):
        optimizer.apply([tf.ones(2, tf.complex64)], [tf.Variable(tf.zeros(2, tf.complex64))])


def test_a_rank_that_stays_away_ends_the_wait(start):
    everywhere("all are here")
    start(group_size=2, timeout=3.0)
    optimizer, variable = hvd.DistributedOptimizer(sgd()), tf.Variable([0.0])
    optimizer.build([variable])
    if hvd.rank() != 1:
        with pytest.raises(ExchangeTimeout, match=r"rank 1 waits in .*took different paths"):
            optimizer.apply([tf.ones(1)], [variable])
    everywhere("all have waited")
    if hvd.rank() == 1:  # now it comes, and finds the others gone ahead
        with pytest.raises((ExchangeTimeout, RanksDisagree)):
            optimizer.apply([tf.ones(1)], [variable])
    everywhere("rank 1 has ended, too")

"""Errors of exchanges inside traced functions, without a job."""

import sys
import traceback

import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("horovod.tensorflow")

from horovod_detox import process  # noqa: E402
from horovod_detox.exchange.step import NoMajority  # noqa: E402
from horovod_detox.tensorflow import failures  # noqa: E402
from horovod_detox.tensorflow import gradients as gradients  # noqa: E402

FAILURE = NoMajority("every group lost its majority")


@tf.function
def exchange(number):
    def fail(number):
        if number > 0:
            raise FAILURE
        return number

    return tf.numpy_function(failures.remembered(fail), [number], tf.int64)


@tf.function
def nested(number):
    return exchange(number) + 1


def caught(call):
    with pytest.raises(Exception, match=r"every group|not of an exchange") as info:
        call()
    return info.value


@pytest.mark.parametrize("function", [exchange, nested])
def test_they_are_raised_as_what_they_are(function):
    for _ in range(2):  # when it is traced, and later
        error = caught(lambda: function(tf.constant(1, tf.int64)))
        assert error is FAILURE
        told = "".join(traceback.format_exception(error))
        assert told.count("every group lost its majority") == 1
        assert len(told.splitlines()) < 20
        assert "Graph execution error" not in told


def test_other_errors_stay_what_they_are():
    @tf.function
    def fail(number):
        tf.debugging.assert_equal(number, 1, "not of an exchange")

    caught(lambda: exchange(tf.constant(1, tf.int64)))
    exchange(tf.constant(0, tf.int64))
    assert isinstance(caught(lambda: fail(tf.constant(2))), tf.errors.InvalidArgumentError)


@pytest.mark.parametrize("rank", [0, 3])
def test_rank_0_speaks_for_all(monkeypatch, rank):
    monkeypatch.setenv("HOROVOD_RANK", str(rank))
    happened = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: happened.append(args[1]))
    monkeypatch.setattr(failures.time, "sleep", happened.append)
    error = caught(lambda: exchange(tf.constant(1, tf.int64)))
    other = KeyError("the script's own")
    sys.excepthook(KeyError, other, None)
    assert happened == [other]
    error = caught(lambda: exchange(tf.constant(1, tf.int64)))
    sys.excepthook(type(error), error, None)
    assert happened[1:] == ([process.PATIENCE, error] if rank else [error])

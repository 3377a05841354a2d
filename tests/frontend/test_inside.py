"""Functions that hold collectives of Horovod: others see that a rank may wait in one."""

import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("horovod.tensorflow")

import horovod_detox.tensorflow as hvd  # noqa: E402
from horovod_detox.exchange.waits import waits  # noqa: E402
from horovod_detox.tensorflow.inside import inside  # noqa: E402


@pytest.fixture(autouse=True)
def job():
    hvd.init()
    yield
    hvd.shutdown()


def seen():
    """Return a node that notes, when it runs, what this process waits in."""
    found = []

    def note():
        found.append(waits.outermost())

    return found, lambda: tf.numpy_function(note, [], [])


def told(function, *arguments):
    """Return what is waited in while a function runs that was traced before."""
    found, function = function
    function(*arguments)
    found.clear()
    function(*arguments)
    assert waits.outermost() is None
    (wait,) = found
    assert wait is None or wait.is_possible
    return wait and wait.what


def of_collectives(*names):
    found, node = seen()

    @tf.function
    def function(number):
        node()
        return [hvd.allreduce(number, name=name) for name in names]

    return found, function


def test_it_is_told_which_collectives_a_function_holds():
    number = tf.constant(1.0)
    assert told(of_collectives(), number) is None
    assert told(of_collectives("loss"), number) == "a function with hvd.allreduce('loss')"
    three = "a function with hvd.allreduce('a') and 2 more"
    assert told(of_collectives("a", "b", "c"), number) == three


def test_the_function_that_a_script_calls_is_the_one_that_waits():
    found, inner = of_collectives("loss")

    @tf.function
    def outer(number):
        return inner(number)

    text = "a function with hvd.allreduce('loss')"
    assert told((found, outer), tf.constant(1.0)) == text
    assert told((found, inner), tf.constant(1.0)) == text


def test_ranks_outside_of_its_process_sets_are_not_waited_for():
    """One process cannot have such sets: they are noted as the verbs do."""
    found, node = seen()

    @tf.function
    def function(sets):
        node()
        for ranks in sets:
            inside.note("hvd.allreduce", ranks)

    for sets, ranks in (([[2, 3], [0, 2]], (0, 2, 3)), ([[], [2, 3]], ())):
        for _ in range(2):
            function(sets)
        assert found.pop().ranks == ranks


def test_a_function_that_fails_waits_no_more():
    @tf.function
    def fail(number):
        tf.debugging.assert_equal(number, 1.0, "not so")
        return hvd.allreduce(number, name="loss")

    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError):
            fail(tf.constant(2.0))
        assert waits.outermost() is None

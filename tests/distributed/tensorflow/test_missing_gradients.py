"""Gradients that some ranks have not, as their batches left variables out."""

import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox.exchange.control import ParametersDiffer

ROWS = np.array([1, 3])

pytestmark = pytest.mark.ranks(4)


def variables():
    """Return a table, of which rows are looked up, and two weights."""
    table = tf.Variable(np.arange(12, dtype=np.float32).reshape(4, 3), name="table")
    return [table, *(tf.Variable([1.0, 2.0, 3.0], name=f"w{i}") for i in range(2))]


def update_of(used, group, variables):
    """Return a tape's gradients of a loss that uses some of the variables."""
    with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
        loss = tf.constant(0.0)
        for i in used:
            value = tf.gather(variables[i], ROWS) if i == 0 else variables[i]
            loss += (group + 1.0) * tf.reduce_sum(value**2)
    return tape.gradient(loss, variables)


def dense(gradient):
    return None if gradient is None else tf.convert_to_tensor(gradient).numpy().tolist()


@pytest.mark.parametrize("settings", [{}, {"one_round_bytes": 1 << 20}, {"exchange": "leaders"}])
@pytest.mark.parametrize("odd", [[0, 1], [1, 2], [0, 1, 2], [1]])
@pytest.mark.parametrize("usual", [[0, 1, 2], [1, 2]])
def test_a_tape_takes_zero_for_what_a_rank_leaves_out(start, settings, odd, usual):
    """Whatever rank 1 leaves out, or brings alone: its group has the update of the others."""
    start(group_size=hvd.size(), **settings)
    expected = [dense(each) for each in update_of(usual, 0, variables())]
    start(group_size=hvd.size(), **settings)
    for step in range(3):
        used = odd if step == 1 and hvd.rank() == 1 else usual
        update = update_of(used, 0, variables())
        assert [dense(each) for each in update] == expected
        assert (update[0] is None) == (0 not in usual)
        assert update[0] is None or isinstance(update[0], tf.IndexedSlices)
    lacks = not set(usual) <= set(odd)  # what it brings alone does not count, and is no vote
    assert hvd.fault_report().dissents == ({1: 1} if lacks else {})


def test_what_a_group_leaves_out_is_zero_there(start):
    start(group_size=hvd.size() // 2, outer="mean")
    used = [[0, 1], [1, 2]][hvd.group() % 2]
    update = update_of(used, hvd.group(), variables())
    w = np.array([1.0, 2.0, 3.0])
    table = np.zeros((4, 3))
    table[ROWS] = np.arange(12).reshape(4, 3)[ROWS]
    for found, right in zip(update, [table, 3 * w, 2 * w], strict=True):
        np.testing.assert_allclose(dense(found), right)
    assert hvd.fault_report().dissents == {}


def test_traced_functions_must_have_the_same_gradients(start):
    start(group_size=hvd.size())
    made = variables()

    @tf.function
    def step(used):
        return update_of(used, 0, made)[1]

    with pytest.raises(ParametersDiffer, match=r"^the parameters differ between ranks"):
        step([1] if hvd.rank() == 1 else [1, 2])

"""Uneven data: ranks join, in Horovod's sense, and the others go on."""

import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from tests.distributed.tensorflow.training import everywhere

pytestmark = pytest.mark.ranks(4)
RATE = 0.5


def target(step, group):
    return np.array([step + 1.0, 10.0 * group, -step], np.float32)


def epoch(weights, steps, traced):
    """Move weights to the targets of this rank's group; join, and take those of the last rank."""

    def move(goal):
        with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
            loss = tf.reduce_sum((weights - goal) ** 2) / 2
        weights.assign_sub(RATE * tape.gradient(loss, [weights])[0])

    move = tf.function(move) if traced else move
    for step in range(steps):
        move(tf.constant(target(step, hvd.group())))
        hvd.allreduce(tf.constant(1.0))
    last = int(hvd.join())
    hvd.broadcast_variables([weights], root_rank=last)
    return last


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("settings", [{}, {"one_round_bytes": 1 << 20}, {"exchange": "leaders"}])
def test_a_group_with_less_data_joins_and_comes_back(start, settings, traced):
    start(group_size=hvd.size() // 2, outer="mean", **settings)
    weights = tf.Variable(np.zeros(3, np.float32))
    last = epoch(weights, [2, 4][hvd.group()], traced)
    epoch(weights, 2, traced)
    right = np.zeros(3, np.float32)
    for counts in ([2, 4], [2, 2]):
        for step in range(max(counts)):
            goals = [target(step, group) for group in range(2) if step < counts[group]]
            right -= RATE * (right - np.mean(goals, axis=0))
    np.testing.assert_allclose(weights.numpy(), right, rtol=1e-5)
    assert last % 2 == 1  # of group 1
    assert len(set(everywhere(str(weights.numpy().tobytes())))) == 1
    report = hvd.fault_report()
    assert (report.dissents, report.abstentions, report.divergences) == ({}, {}, {})


def test_ranks_join_where_gradients_leave_in_groups(start, small_blocks):
    start(group_size=2, outer="mean", overlap_bytes=64)
    weights = [tf.Variable(tf.ones(40 + i)) for i in range(3)]

    @tf.function
    def step(goal):
        with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
            loss = tf.add_n([tf.reduce_sum((weight - goal) ** 2) for weight in weights])
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.1 * gradient)

    for number in range(2 + 2 * hvd.group()):
        step(tf.constant(number + hvd.group() + 1.0))
    last = int(hvd.join())
    hvd.broadcast_variables(weights, root_rank=last)
    for _ in range(2):
        step(tf.constant(hvd.group() + 1.0))
    right = 1.0
    for goals in ([1, 2], [2, 3], [4], [5], [1, 2], [1, 2]):
        right -= 0.2 * (right - np.mean(goals))
    for weight in weights:
        np.testing.assert_allclose(weight.numpy(), right, rtol=1e-5)
    assert len(set(everywhere(str([weight.numpy().tobytes() for weight in weights])))) == 1
    report = hvd.fault_report()
    assert (report.dissents, report.abstentions, report.divergences) == ({}, {}, {})


def test_join_is_called_eagerly(start):
    start(group_size=hvd.size())

    @tf.function
    def step():
        return hvd.join()

    with pytest.raises(RuntimeError, match=r"outside of tf.function"):
        step()

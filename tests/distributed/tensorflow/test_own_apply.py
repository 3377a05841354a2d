"""Optimizers around others, and those that override `apply`: they exchange once a step."""

import keras
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox import attacks
from tests.distributed.tensorflow.training import everywhere, fit, model

pytestmark = pytest.mark.ranks(4)


def multi(**options):
    inner = [keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.01)]
    return keras.optimizers.MultiOptimizer(lambda v: inner["kernel" in v.path], **options)


class Lookahead(keras.optimizers.SGD):
    """Steps, and every second time goes half of the way back."""

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        variables = trainable_variables or self._trainable_variables
        if not hasattr(self, "slow"):
            self.slow = [tf.Variable(v.value) for v in variables]
        for slow, variable in zip(self.slow, variables, strict=True):
            slow.assign(slow + 0.5 * (variable.value - slow))
            variable.assign(tf.where(self.iterations % 2 == 0, slow.value(), variable.value))


OPTIMIZERS = {
    "multi": multi,
    "lookahead": lambda: Lookahead(0.1),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(multi(), initial_scale=2.0),
}


def weights(network):
    return [v.numpy().tolist() for v in network.trainable_variables]


@pytest.mark.parametrize(
    ("name", "eagerly"),
    [
        ("multi", False),
        ("lookahead", True),
        ("scaled", False),
        pytest.param("multi", True, marks=pytest.mark.soak),
        pytest.param("lookahead", False, marks=pytest.mark.soak),
        pytest.param("scaled", True, marks=pytest.mark.soak),
    ],
)
def test_they_exchange_once_a_step(start, name, eagerly):
    """A liar is outvoted; the weights are those of one process on the same batches."""
    if name == "lookahead" and not eagerly:
        pytest.skip("this one makes variables in its first step")
    alone = fit(OPTIMIZERS[name](), 4, 0, run_eagerly=eagerly)
    start(group_size=hvd.size())
    network = model()
    optimizer = hvd.DistributedOptimizer(
        OPTIMIZERS[name](), attack=attacks.Reverse(ranks=(1,), steps=range(1, 9))
    )
    fit(optimizer, 4, 0, network=network, run_eagerly=eagerly)
    assert weights(network) == weights(alone)
    report = hvd.fault_report()
    assert report.steps == 4
    assert report.dissents == {1: 3}


@pytest.mark.parametrize("eagerly", [True, False])
def test_a_step_without_votes_is_skipped(start, eagerly):
    """In the second of three steps the two ranks of each group differ."""
    start(group_size=2, outer="mean")
    network = model()
    optimizer = multi()
    faults = attacks.Reverse(ranks=(0, 1), steps=(1, 2))
    fit(
        hvd.DistributedOptimizer(optimizer, attack=faults),
        3,
        hvd.group(),
        network=network,
        run_eagerly=eagerly,
    )
    report = hvd.fault_report()
    assert (report.steps, report.skipped) == (3, 1)
    assert int(optimizer.iterations) == 2
    assert len(set(everywhere(str(weights(network))))) == 1


def test_what_they_cannot_do_is_refused(start):
    start(group_size=2, outer="mean")
    with pytest.raises(ValueError, match=r"MultiOptimizer has an apply\(\) of its own"):
        hvd.DistributedOptimizer(multi(), backward_passes_per_step=2)

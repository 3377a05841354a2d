"""Everything of Horovod's modules, by its name."""

import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from tests.distributed.names import missing_names

pytestmark = pytest.mark.ranks(4)


@pytest.mark.parametrize("framework", ["tensorflow", "keras"])
def test_nothing_of_horovod_is_missing(framework):
    assert missing_names(framework) == []


def test_what_is_replaced_is_ours_by_every_name():
    import horovod_detox.keras.callbacks as callbacks
    import horovod_detox.keras.elastic as elastic
    import horovod_detox.tensorflow.mpi_ops as mpi_ops
    from horovod_detox.tensorflow.sync_batch_norm import SyncBatchNormalization

    assert callbacks.MetricAverageCallback is hvdk.callbacks.MetricAverageCallback
    assert elastic.KerasState is hvdk.elastic.KerasState
    assert (mpi_ops.init, mpi_ops.join) == (hvd.init, hvd.join)
    with pytest.raises(ValueError, match="without a vote"):
        SyncBatchNormalization()
    with pytest.raises(AttributeError, match="has no attribute 'no_such_thing'"):
        _ = hvd.no_such_thing


def test_a_wrapped_optimizer_of_tensorflow_1_shows_what_it_wraps(start):
    start(group_size=2)
    optimizer = tf.compat.v1.train.GradientDescentOptimizer(1.0)
    assert hvd.DistributedOptimizer(optimizer)._optimizer is optimizer

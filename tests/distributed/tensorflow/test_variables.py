"""Variables are known by more than the names that Keras makes for them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.exchange.waits import ExchangeTimeout
from tests.distributed.tensorflow.training import BATCH, batches, digest, everywhere, sgd

pytestmark = [
    pytest.mark.ranks(4),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras's own
]


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = keras.layers.Dense(8, activation="tanh")
        self.norm = keras.layers.BatchNormalization()
        self.out = keras.layers.Dense(3)

    def call(self, inputs, training=False):
        return self.out(self.norm(self.hidden(inputs), training=training))


def sequential():
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((5,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)]
    )


def functional():
    inputs = keras.layers.Input((5,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(hidden))


def subclassed():
    network = Subclassed()
    network(np.zeros((1, 5), np.float32))
    return network


def compiled(build):
    network = build()
    optimizer = hvdk.DistributedOptimizer(keras.optimizers.Adam(0.01))
    network.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    return network


def fit(network, epochs, first=0):
    inputs, labels = batches(3, hvd.group())
    start = [hvdk.callbacks.BroadcastGlobalVariablesCallback(0)]
    network.fit(
        inputs,
        labels,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        epochs=epochs,
        initial_epoch=first,
        callbacks=start,
    )


@pytest.mark.parametrize(
    "build", [sequential, subclassed, pytest.param(functional, marks=pytest.mark.soak)]
)
def test_rank_0_alone_loads_a_checkpoint_and_the_others_build_the_model(start, tmp_path, build):
    start(group_size=2, outer="mean")
    network = compiled(build)
    fit(network, 2)
    if hvd.rank() == 0:
        network.save(tmp_path / "model.keras")
        resumed = hvdk.load_model(tmp_path / "model.keras")
    else:
        resumed = compiled(build)
    fit(network, 3, 2)
    fit(resumed, 3, 2)
    assert everywhere(digest(resumed)) == everywhere(digest(network))
    assert not hvd.fault_report().events


@pytest.mark.parametrize("way", ["built", "loaded"])
def test_one_rank_has_made_a_model_more(start, tmp_path, way):
    start(group_size=4)
    if way == "loaded":
        sequential().save(tmp_path / "model.keras")
    if hvd.rank() == 2:
        sequential() if way == "built" else keras.models.load_model(tmp_path / "model.keras")
    network = compiled(sequential)
    fit(network, 1)
    assert not hvd.fault_report().events


def test_a_tape_knows_variables_by_more_than_their_path(start):
    start(group_size=2, outer="mean")
    network = (sequential if hvd.rank() == 1 else functional)()
    hvd.broadcast_variables(network.variables, root_rank=3)
    inputs, _ = batches(1, 0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(network(inputs) ** 2)
    gradients = hvd.DistributedGradientTape(tape).gradient(loss, network.trainable_variables)
    sgd().apply(gradients, network.trainable_variables)
    assert len(set(everywhere(digest(network)))) == 1


def test_other_variables_are_an_error_before_anything_is_sent(start):
    start(group_size=2)
    kernel, bias = tf.Variable(tf.zeros((2, 2)), name="kernel"), tf.Variable([1.0], name="bias")
    given = [bias, kernel] if hvd.rank() == 2 else [kernel, bias]
    text = r"rank 0 has /kernel \[2, 2\] float32 where rank 2 has /bias \[1\] float32"
    with pytest.raises(RanksDisagree, match=text):
        hvd.broadcast_variables(given, root_rank=0)
    given = [kernel] if hvd.rank() == 1 else [kernel, bias]
    with pytest.raises(RanksDisagree, match="where rank 1 has no parameter"):
        hvd.broadcast_variables(given, root_rank=0)
    # Of one shape, in another order.
    scale, offset = tf.Variable([1.0], name="scale"), tf.Variable([2.0], name="offset")
    given = [offset, scale] if hvd.rank() == 3 else [scale, offset]
    with pytest.raises(RanksDisagree, match="rank 3 has /offset"):
        hvd.broadcast_variables(given, root_rank=0)


def test_a_rank_that_does_not_broadcast_ends_the_wait(start):
    start(group_size=2, timeout=2)
    if hvd.rank() != 1:
        with pytest.raises(ExchangeTimeout, match=r"broadcast_variables.*took different paths"):
            hvd.broadcast_variables([tf.Variable([1.0])], root_rank=0)
    everywhere("all have waited")
    if hvd.rank() == 1:  # now it comes, so that nothing of the wait is left for other tests
        with pytest.raises(RanksDisagree, match="rank 1 has no parameter"):
            hvd.broadcast_variables([], root_rank=0)
    everywhere("rank 1 has ended, too")


def test_objects_of_other_types_on_each_rank(start):
    start(group_size=2)
    mine = [None, {"a": 1}, "text", 4][hvd.rank()]
    assert hvd.allgather_object(mine) == [None, {"a": 1}, "text", 4]
    root_has = {"epoch": 3} if hvd.rank() == 1 else None
    assert hvd.broadcast_object(root_has, root_rank=1) == {"epoch": 3}

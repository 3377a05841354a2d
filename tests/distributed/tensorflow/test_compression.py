"""Compressed gradients of Keras optimizers and tapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.keras
import horovod_detox.tensorflow as hvd
import horovod_detox.tensorflow.keras as hvdk
from horovod_detox.attacks import Reverse
from tests.distributed.tensorflow.steps import gradients_of, step_by
from tests.distributed.tensorflow.training import (
    digest,
    everywhere,
    model,
    sgd,
    train,
)

pytestmark = pytest.mark.ranks(4)


@pytest.mark.parametrize("way", ["fit", "tape_eagerly"])
def test_sign_compression_trains_and_masks_a_liar(start, way):
    start(group_size=4, outer="sign_majority")

    def make():
        return keras.optimizers.SGD(0.01)

    sign = hvdk.Compression.sign
    before = model().get_weights()
    fair = train(make, 3, way, compression=sign)
    moved = [
        np.rint((now - then) / 0.01) for now, then in zip(fair.get_weights(), before, strict=True)
    ]
    assert set(np.concatenate([m.ravel() for m in moved])) == {-3, -1, 1, 3}
    liar = train(make, 3, way, compression=sign, attack=Reverse(ranks=(2,)))
    assert everywhere(digest(liar)) == [digest(fair)] * 4
    assert hvd.fault_report().dissents == {2: 3}


def test_sign_compression_of_what_has_no_signs_is_refused(start):
    start(group_size=2, outer="median")
    options = {"compression": horovod_detox.keras.Compression.sign}
    for distribute, wrapped in (
        (hvdk.DistributedOptimizer, sgd()),
        (hvd.DistributedGradientTape, tf.GradientTape()),
    ):
        with pytest.raises(ValueError, match=r"outer = 'median' needs numbers.*sign_majority"):
            distribute(wrapped, **options)
    start(group_size=2, outer="sign_majority")
    table = tf.Variable(tf.zeros((3, 2)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [1]))
    tape = hvd.DistributedGradientTape(tape, **options)
    with pytest.raises(ValueError, match="the gradient of 0 Variable is sparse"):
        tape.gradient(loss, table)


def test_fp16_compression(start):
    start(group_size=2, outer="mean")
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), compression=hvd.Compression.fp16
    )
    gradient = gradients_of(*[[1.0 + 2**-11], [3.0]] * 2)  # rounds to 1 in half precision
    assert step_by(optimizer, [gradient], tf.Variable([0.0])) == [-2.0]

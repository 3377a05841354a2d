"""DistributedGradientTape keeps what tf.GradientTape and Horovod's tape offer."""

import inspect

import horovod.tensorflow as stock
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.autograph.utils import ag_logging as autograph_logging

import horovod_detox.tensorflow as hvd
from horovod_detox.attacks import Stale
from horovod_detox.tensorflow.context import context
from tests.distributed.tensorflow.training import everywhere

pytestmark = pytest.mark.ranks(4)


def mine(*values):
    """Return this rank's value: `values[rank]`."""
    return values[hvd.rank()]


def test_sources_of_any_structure_and_none_gradients(start):
    start(group_size=2, outer="mean")
    used, unused = tf.Variable([1.0, 2.0]), tf.Variable(0.0)
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    layer.build((None, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(used[None])) * mine(1.0, 3.0, 1.0, 3.0)
    tape = hvd.DistributedGradientTape(tape)
    assert isinstance(tape, tf.GradientTape)
    gradients = tape.gradient(loss, {"used": used, "rest": [unused, layer.kernel]})
    assert gradients["used"].numpy().tolist() == [2, 2]
    assert gradients["rest"][0] is None
    assert gradients["rest"][1].numpy().tolist() == [[2], [4]]


def test_autograph_has_nothing_to_say(start, monkeypatch):
    """A tape is wrapped in a function that is being traced: under the launcher ranks meet there."""
    start(group_size=2, outer="mean")
    said = []
    monkeypatch.setattr(autograph_logging, "warning", lambda *args: said.append(args))

    def meet(process_set):
        with tf.init_scope():
            context.collectives("meeting", process_set).allgather("x", np.zeros(1, int)).wait()

    monkeypatch.setattr(context, "before_engines", meet)
    variable = tf.Variable([1.0, 2.0])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable**2)
        return hvd.DistributedGradientTape(tape).gradient(loss, [variable])

    assert step()[0].numpy().tolist() == [2, 4]
    assert said == []


def test_a_single_source_and_a_watched_tensor(start):
    start(group_size=2, outer="mean")
    point = tf.constant([3.0])
    with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
        tape.watch(point)
        loss = point**2 * mine(1.0, 3.0, 1.0, 3.0)
    assert tape.gradient(loss, point).numpy() == 12


def test_a_persistent_tape_and_zeros_for_unconnected_sources(start):
    start(group_size=2, outer="mean")
    one, other = tf.Variable(1.0), tf.Variable(1.0)
    with tf.GradientTape(persistent=True) as tape:
        losses = [one * 2, other * mine(1.0, 3.0, 1.0, 3.0)]
    tape = hvd.DistributedGradientTape(tape)
    assert tape.gradient(losses[0], one).numpy() == 2
    assert tape.gradient(losses[1], other).numpy() == 2
    zeros = tape.gradient(losses[0], [one, other], unconnected_gradients="zero")
    assert [gradient.numpy() for gradient in zeros] == [2, 0]


def test_embeddings_come_back_sparse(start):
    start(group_size=2, outer="mean")
    table = tf.Variable(tf.zeros((6, 2)))
    for as_dense in (False, True):
        with tf.GradientTape() as tape:
            rows = tf.gather(table, [[1, 1], [4, 1]][hvd.group()])
            loss = tf.reduce_sum(rows)
        tape = hvd.DistributedGradientTape(tape, sparse_as_dense=as_dense)
        gradient = tape.gradient(loss, table)
        assert isinstance(gradient, tf.IndexedSlices) != as_dense
        if not as_dense:
            assert gradient.indices.numpy().tolist() == [1, 4]
            gradient = tf.convert_to_tensor(gradient)
        assert gradient.numpy()[:, 0].tolist() == [0, 1.5, 0, 0, 0.5, 0]


def test_local_sources(start):
    start(group_size=2, outer="mean")
    local, shared = tf.Variable(1.0), tf.Variable(1.0)
    for scale, expected in ((True, 0.5), (False, 1.0)):
        with tf.GradientTape() as tape:
            loss = (local + shared) * mine(1.0, 2.0, 3.0, 4.0 - 2.0) * 1.0
            loss = loss - shared * mine(1.0, 2.0, 3.0, 2.0) + shared
        tape = hvd.DistributedGradientTape(tape, scale_local_gradients=scale)
        tape.register_local_source(local)
        locals_, others = tape.get_local_and_global_gradients(loss, [local, shared])
        assert [source is local for source, _ in locals_] == [True]
        assert locals_[0][1].numpy() == expected * mine(1.0, 2.0, 3.0, 2.0)
        assert [gradient.numpy() for _, gradient in others] == [1]


def test_local_layers(start):
    start(group_size=2, outer="mean")
    layer = keras.layers.Dense(1, use_bias=False)
    layer.build((None, 1))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.ones((1, 1)))) * mine(1.0, 2.0, 3.0, 4.0)
    tape = hvd.PartialDistributedGradientTape(tape, local_layers=layer, scale_local_gradients=False)
    assert tape.gradient(loss, [layer.kernel])[0].numpy() == mine(1, 2, 3, 4)
    with pytest.raises(ValueError, match="must be Keras layers"):
        hvd.PartialDistributedGradientTape(tf.GradientTape(), local_layers=["dense"])


def test_each_model_has_a_memory_of_its_own(start):
    """A stale rank repeats its last copy of this model, not of the one trained in between."""
    start(group_size=4)
    models = tf.Variable([0.0]), tf.Variable([0.0, 0.0])
    for step in range(3):
        for variable in models:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(variable) * float(step + 1)
            tape = hvd.DistributedGradientTape(tape, attack=Stale(ranks=(1,)))
            gradient = tape.gradient(loss, variable)
            assert gradient.numpy().tolist() == [step + 1] * len(variable.numpy())
    assert hvd.fault_report().dissents == {1: 4}  # the first copies are fresh


def test_models_of_one_shape_do_not_share_their_means(start):
    start(group_size=1, outer="mean", momentum=0.9)
    networks = [(tf.Variable(tf.zeros([3])), sign) for sign in (1.0, -1.0)]

    @tf.function
    def traced(variable, sign):
        return gradient_of(variable, sign)

    def gradient_of(variable, sign):
        with tf.GradientTape() as tape:
            loss = sign * tf.reduce_sum(variable)
        return hvd.DistributedGradientTape(tape).gradient(loss, [variable])[0]

    for _ in range(3):
        for compute in (gradient_of, traced):
            for variable, sign in networks:
                assert compute(variable, sign).numpy().tolist() == [sign] * 3


def test_a_training_leaks_nothing_into_the_next(start):
    start(group_size=1, outer="mean", momentum=0.9)
    for sign in (1.0, -1.0):
        variable = tf.Variable(tf.zeros([3]))
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = sign * tf.reduce_sum(variable)
            (gradient,) = hvd.DistributedGradientTape(tape).gradient(loss, [variable])
            assert gradient.numpy().tolist() == [sign] * 3
        del variable, tape, loss, gradient


def test_a_process_set(start):
    pair = stock.add_process_set([1, 3])
    try:
        start(group_size=2)
        variable = tf.Variable([1.0])
        with tf.GradientTape() as tape:
            loss = variable * mine(5.0, 2.0, 7.0, 2.0)
        tape = hvd.DistributedGradientTape(tape, process_set=pair)
        assert tape.gradient(loss, variable).numpy() == mine(5, 2, 7, 2)
        if hvd.rank() in (1, 3):
            assert hvd.fault_report(pair).steps == 1
    finally:
        everywhere("all have done so")
        stock.remove_process_set(pair)


def test_a_process_set_may_get_the_number_of_one_that_is_gone(start):
    start(group_size=1)
    for ranks in ([0, 1], [1, 2, 3], [0, 1]):
        subset = stock.add_process_set(ranks)
        variable = tf.Variable([1.0])
        with tf.GradientTape() as tape:
            loss = variable * float(hvd.rank())
        tape = hvd.DistributedGradientTape(tape, process_set=subset)
        expected = np.mean(ranks) if hvd.rank() in ranks else hvd.rank()
        assert tape.gradient(loss, variable).numpy() == expected
        everywhere("all have done so")
        stock.remove_process_set(subset)


def test_a_function_that_is_traced_again(start):
    start(group_size=2, outer="mean")
    variable = tf.Variable([1.0])

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(inputs * variable)
        return hvd.DistributedGradientTape(tape).gradient(loss, variable)

    for length in (1, 2, 3, 1):
        assert step(tf.fill([length], mine(1.0, 3.0, 1.0, 3.0))).numpy() == 2 * length
    assert hvd.fault_report().steps == 4


def test_the_arguments_of_horovods_tapes():
    expected = inspect.signature(stock.DistributedGradientTape).parameters.values()
    ours = inspect.signature(hvd.DistributedGradientTape).parameters.values()
    for parameter, theirs in zip(ours, expected, strict=False):
        assert (parameter.name, parameter.default) == (theirs.name, theirs.default)


def test_compressors_must_keep_the_shape(start):
    start(group_size=2, outer="mean")

    class Halve:
        @staticmethod
        def compress(tensor):
            return tensor[: len(tensor) // 2], None

        @staticmethod
        def decompress(tensor, context):
            return tensor

    variable = tf.Variable([1.0, 1.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(variable)
    tape = hvd.DistributedGradientTape(tape, compression=Halve)
    with pytest.raises(ValueError, match=r"of shape \(2,\) into \(1,\)"):
        tape.gradient(loss, variable)


def test_sync_batch_norm_is_refused():
    with pytest.raises(ValueError, match="without a vote"):
        hvd.SyncBatchNormalization()


def test_all_of_horovod_is_there():
    names = {name for name in dir(stock) if name[0] != "_"}
    missing = {name for name in names - {*dir(hvd)} if not inspect.ismodule(getattr(stock, name))}
    assert missing == set()
    np.testing.assert_array_equal(hvd.allreduce(tf.ones(2), op=hvd.Sum), [4, 4])

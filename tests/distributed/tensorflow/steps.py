"""Steps of an optimizer with known gradients, for tests."""

import tensorflow as tf

import horovod_detox.tensorflow as hvd


def gradients_of(*values):
    """Return one gradient by rank: `values[rank]`."""
    return tf.constant(values[hvd.rank()], tf.float32)


def step_by(optimizer, gradients, variable):
    """Apply gradients one after another in a function; return what was added to the variable."""
    before = variable.numpy()

    @tf.function
    def step(gradient):
        optimizer.apply([gradient], [variable])

    for gradient in gradients:
        step(gradient)
    return (variable.numpy() - before).round(5).tolist()

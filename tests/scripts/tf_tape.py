"""A TensorFlow 2 loop with a tape in a tf.function; data in an order that nobody has seeded."""

import argparse

import horovod.tensorflow as hvd
import tensorflow as tf
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=12)
args = parser.parse_args()

hvd.init()
pixels, digits = load_digits(return_X_y=True)
dataset = tf.data.Dataset.from_tensor_slices(
    (tf.cast(pixels / 16, tf.float32), tf.cast(digits, tf.int64))
)
dataset = dataset.shard(hvd.size(), hvd.rank()).repeat().shuffle(500).batch(16)


class Network(tf.Module):
    def __init__(self):
        super().__init__()
        self.first = tf.Variable(tf.random.normal([64, 24], stddev=0.1), name="first")
        self.bias = tf.Variable(tf.zeros([24]), name="bias")
        self.last = tf.Variable(tf.random.normal([24, 10], stddev=0.1), name="last")

    def __call__(self, images):
        hidden = tf.nn.relu(images @ self.first + self.bias)
        return tf.nn.dropout(hidden, 0.2) @ self.last


model = Network()
optimizer = tf.compat.v1.train.MomentumOptimizer(0.02 * hvd.size(), 0.9)


@tf.function
def training_step(images, labels, first_batch):
    with tf.GradientTape() as tape:
        logits = model(images)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )
    tape = hvd.DistributedGradientTape(tape)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    if first_batch:
        hvd.broadcast_variables(model.variables, root_rank=0)
    return loss


for batch, (images, labels) in enumerate(dataset.take(args.steps)):
    loss = training_step(images, labels, batch == 0)
    if batch % 10 == 0 and hvd.rank() == 0:
        print(f"step {batch}: {loss.numpy():.3f}")

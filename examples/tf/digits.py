"""Train a small Keras network on scikit-learn's digits, with some ranks that lie if you like.

horovodrun -np 6 --gloo python examples/tf/digits.py --attack "reverse(scale=100)@4,5"
"""

import argparse
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from common import Run, flags, job, plain_average
from keras import layers
from sklearn.datasets import load_digits

import horovod_detox.tensorflow.keras as hvd
from horovod_detox import Detox


def main() -> int:
    args = flags("Digits with Horovod and DETOX", epochs=10, batch_size=48, lr=0.05).parse_args()
    return job.run(args, train)


def train(args: argparse.Namespace) -> Run:
    plain = args.method == "horovod"
    hvd.init(
        detox=Detox(
            group_size=args.group_size, inner=args.inner, outer=args.outer, buckets=args.buckets
        )
    )
    hvd.reset_fault_report()  # with --compare there was a training before
    attack = job.attack_of(args)
    model: Any = network()
    hvd.seed_group(args.seed, model)  # the same dropout and order in the ranks of a group

    # The ranks of a group work on the same batches; for plain Horovod, each on its own.
    train_set, test_set = digits()
    dataset, batch_size = hvd.shard(train_set), args.batch_size
    if plain:
        dataset = train_set.shard(hvd.size(), hvd.rank())
        batch_size = batch_size * hvd.num_groups() // hvd.size()  # the same global batch
    dataset = dataset.shuffle(len(dataset), seed=args.seed).batch(batch_size)
    poison = job.poison_of(args)
    dataset = dataset.map(lambda images, labels: (images, in_numpy(poison, labels)))

    optimizer = keras.optimizers.SGD(args.lr, momentum=0.9)
    if plain:
        average_before(optimizer, attack)
    else:
        hvd.DistributedOptimizer(optimizer, attack=attack)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # an exchange cannot be compiled
    )
    bar = job.progress(range(args.epochs), args.method)
    model.fit(
        dataset,
        epochs=args.epochs,
        shuffle=False,  # the dataset does it
        verbose=0,
        callbacks=[
            hvd.callbacks.BroadcastGlobalVariablesCallback(0),
            hvd.callbacks.MetricAverageCallback(),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: bar.update()),
        ],
    )
    bar.close()

    if not plain:
        job.say(hvd.fault_report())
    scores = model.evaluate(*test_set, verbose=0, return_dict=True)
    return job.conclude(args, model, scores["accuracy"])


def network() -> keras.Model:
    return keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def digits() -> tuple[tf.data.Dataset, tuple[np.ndarray, np.ndarray]]:
    """Return 1437 images to train with and 360 to test with."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    images, labels = (pixels[order] / 16).astype(np.float32), digits[order]
    train = tf.data.Dataset.from_tensor_slices((images[360:], labels[360:]))
    return train, (images[:360], labels[:360])


def in_numpy(function: Any, labels: tf.Tensor) -> tf.Tensor:
    """Call a function of arrays in a tf.data pipeline."""
    return tf.ensure_shape(tf.numpy_function(function, [labels], labels.dtype), labels.shape)


def average_before(optimizer: Any, attack: Any) -> None:
    """Have an optimizer average gradients by plain Horovod."""
    apply, groups = optimizer.apply, job.groups()

    def average_and_apply(gradients: Any, variables: Any = None) -> None:
        apply(plain_average(list(gradients), attack, hvd.rank(), groups), variables)

    optimizer.apply = average_and_apply


if __name__ == "__main__":
    sys.exit(main())

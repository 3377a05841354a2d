"""Train image classifiers in a loop of one's own: a small CNN, or those of the DETOX paper.

    horovodrun -np 6 --gloo python examples/tf/fashion_mnist.py --attack "noise(std=1)@4,5"
    horovodrun -np 6 --gloo python examples/tf/fashion_mnist.py \\
        --dataset cifar10 --model resnet18 --epochs 100
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from common import Run, flags, job, plain_average
from data import CLASSES, Arrays, augment, load
from models import MODELS

import horovod_detox.tensorflow as hvd
from horovod_detox import Detox


def parser() -> argparse.ArgumentParser:
    parser = flags("Image classifiers with Horovod and DETOX", epochs=5, batch_size=96, lr=0.05)
    add = parser.add_argument
    add("--dataset", choices=CLASSES, default="fashion_mnist")
    add("--data", type=Path, metavar="DIR", help="folder of idx files; default: Debian's, or none")
    add("--model", choices=MODELS, help="default: cnn, and resnet18 for CIFAR")
    add("--fp16-allreduce", action="store_true", help="send gradients in half precision")
    add("--steps-per-epoch", type=int, metavar="N", help="end every epoch after N steps")
    return parser


def main() -> int:
    return job.run(parser().parse_args(), train)


def train(args: argparse.Namespace) -> Run:
    hvd.init(
        detox=Detox(
            group_size=args.group_size, inner=args.inner, outer=args.outer, buckets=args.buckets
        )
    )
    hvd.reset_fault_report()  # with --compare there was a training before
    tf.config.experimental.enable_op_determinism()  # honest ranks must agree in every bit
    train_set, test_set = load(args.dataset, args.data)
    name = args.model or ("cnn" if args.dataset == "fashion_mnist" else "resnet18")
    model: Any = MODELS[name](CLASSES[args.dataset])
    hvd.broadcast_variables(model.variables, root_rank=0)
    hvd.seed_group(args.seed, model)  # the same dropout and augmentation in the ranks of a group
    dataset = batches(args, train_set)
    steps = min(len(dataset), args.steps_per_epoch or len(dataset))

    schedule: Any = keras.optimizers.schedules.CosineDecay(args.lr, args.epochs * steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=5e-4)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    attack, groups = job.attack_of(args), job.groups()
    compression: Any = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        tape: Any = tf.GradientTape()
        with tape:
            loss = loss_of(labels, model(images, training=True))
        if args.method == "detox":
            tape = hvd.DistributedGradientTape(tape, compression=compression, attack=attack)
        gradients = tape.gradient(loss, model.trainable_variables)
        if args.method == "horovod":
            gradients = plain_average(gradients, attack, hvd.rank(), groups)
        optimizer.apply(gradients, model.trainable_variables)

    poison = job.poison_of(args)
    share = 0.0
    for epoch in range(args.epochs):
        for images, labels in job.progress(dataset.take(steps), f"epoch {epoch + 1}", steps):
            step(images, poison(labels))
        share = accuracy(model, test_set)
        job.say(f"{args.method}, epoch {epoch + 1}: test accuracy {share:.1%}")
    return job.conclude(args, model, share)


def batches(args: argparse.Namespace, train_set: Arrays) -> tf.data.Dataset:
    """Deal the data to the groups, or to all ranks if each is on its own."""
    dataset, batch_size = tf.data.Dataset.from_tensor_slices(train_set), args.batch_size
    if args.method == "detox":
        dataset = hvd.shard(dataset)
    else:
        dataset = dataset.shard(hvd.size(), hvd.rank())
        batch_size = batch_size * hvd.num_groups() // hvd.size()  # the same global batch
    dataset = dataset.shuffle(len(dataset), seed=args.seed)
    if args.dataset != "fashion_mnist":
        dataset = dataset.map(augment)
    return dataset.batch(batch_size, drop_remainder=True)


def accuracy(model: keras.Model, test_set: Arrays) -> float:
    """Return the share of the test data that is classified right, each rank testing a part."""
    images, labels = (part[hvd.rank() :: hvd.size()] for part in test_set)
    right = [
        np.sum(np.argmax(model(images[i : i + 250]), axis=1) == labels[i : i + 250])
        for i in range(0, len(labels), 250)
    ]
    total: Any = hvd.allreduce(tf.constant(sum(right)), op=hvd.Sum)
    return float(total) / len(test_set[1])


if __name__ == "__main__":
    sys.exit(main())

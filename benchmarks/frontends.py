"""Time a step of the TensorFlow frontend against one of PyTorch's, in turn in one job.

horovodrun -np 6 --gloo python benchmarks/frontends.py
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import torch
from exchange import say, seconds

import horovod_detox.tensorflow
import horovod_detox.torch as hvd
from horovod_detox import Detox


def main() -> None:
    parser = argparse.ArgumentParser(description="TensorFlow steps against PyTorch steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--outer", default="median")
    args = parser.parse_args()

    torch.set_num_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    for frontend in (hvd, horovod_detox.tensorflow):
        frontend.init(detox=Detox(group_size=args.group_size, outer=args.outer))
    say(f"ranks: {hvd.size()}, group_size: {args.group_size}, outer: {args.outer}\n")
    say("| floats | PyTorch, ms | TensorFlow eagerly / PyTorch | in a tf.function / PyTorch |")
    say("|---|---|---|---|")
    for size in args.sizes:
        steps = [torch_step(size), tensorflow_step(size), tf.function(tensorflow_step(size))]
        rounds = [[seconds(step) for step in steps] for _ in range(args.repeats + 2)][2:]
        reference = 1000 * statistics.median(times[0] for times in rounds)
        ratios = [statistics.median(times[i] / times[0] for times in rounds) for i in (1, 2)]
        say(f"| {size} | {reference:.1f} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")


def torch_step(size: int) -> Callable[[], Any]:
    """Return a step of SGD with gradients in 10 tensors."""
    parameters = [torch.nn.Parameter(torch.zeros(size // 10)) for _ in range(10)]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.1))
    for parameter in parameters:
        parameter.grad = torch.ones(size // 10)
    return optimizer.step


def tensorflow_step(size: int) -> Callable[[], Any]:
    """Return the same step of a Keras optimizer."""
    variables = [tf.Variable(tf.zeros(size // 10)) for _ in range(10)]
    gradients = [tf.ones(size // 10) for _ in range(10)]
    optimizer = horovod_detox.tensorflow.DistributedOptimizer(keras.optimizers.SGD(0.1))
    optimizer.build(variables)
    return lambda: optimizer.apply(gradients, variables)


if __name__ == "__main__":
    main()

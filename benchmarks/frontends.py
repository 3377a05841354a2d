"""Time a step of the TensorFlow frontend against one of PyTorch's, in turn in one job.

horovodrun -np 6 --gloo python -m benchmarks.frontends
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
import torch

import horovod_detox.tensorflow
import horovod_detox.torch as hvd
from benchmarks import job
from horovod_detox import Detox
from measuring.clock import Operation


def main() -> None:
    parser = argparse.ArgumentParser(description="TensorFlow steps against PyTorch steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--outer", default="median")
    parser.add_argument("--json", type=Path, help="append the results to this file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    for frontend in (hvd, horovod_detox.tensorflow):
        frontend.init(detox=Detox(group_size=args.group_size, outer=args.outer))
    job.say([row for size in args.sizes for row in compare(size, args.repeats)], args)


def compare(size: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row for each way to run TensorFlow."""
    steps = {"eager": tensorflow_step(size), "tf.function": tf.function(tensorflow_step(size))}
    measured = job.clock(repeats).compare(
        Operation(torch_step(size)), [Operation(step) for step in steps.values()]
    )
    return [
        {"ranks": hvd.size(), "floats": size, "TensorFlow": name} | times
        for name, times in zip(steps, measured, strict=True)
    ]


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

"""Time what a step of a `tf.function` takes longer for its exchange, as `benchmarks.overlap` does.

horovodrun -np 6 --gloo python -m benchmarks.overlap_tensorflow
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import horovod.tensorflow as horovod
import numpy as np
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox import Detox
from measuring.tables import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floats", type=int, default=10**7, help="of all layers together")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.025, help="that each layer computes")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--overlap-bytes", type=int, nargs="+", default=[0, Detox().overlap_bytes])
    args = parser.parse_args()

    hvd.init(detox=Detox(args.group_size))
    steps = {"none": Step(args, lambda tape: tape)}
    steps |= {"horovod": Step(args, horovod.DistributedGradientTape)}
    for parts in args.overlap_bytes:
        hvd.init(detox=Detox(args.group_size, overlap_bytes=parts))
        steps[f"parts of {parts}"] = Step(args, hvd.DistributedGradientTape)
    rounds = [[seconds(step) for step in steps.values()] for _ in range(args.repeats + 2)]
    times = np.max(hvd.allgather_object(rounds[2:], name="rounds"), axis=0)
    exposed = 1000 * (times[:, 1:] - times[:, :1])
    low, median, high = np.quantile(exposed, (0.25, 0.5, 0.75), axis=0)
    rows = [
        {
            "ranks": hvd.size(),
            "exchange": name,
            "exposed_ms": median[i],
            "low": low[i],
            "high": high[i],
            "of_horovod": median[i] / median[0],
        }
        for i, name in enumerate(list(steps)[1:])
    ]
    if hvd.rank() == 0:
        report(rows, None)


def seconds(step: "Step") -> float:
    """Return how long a step takes that all ranks begin together."""
    hvd.allreduce(tf.constant(0.0), name="begin")
    begin = time.perf_counter()
    step.run()
    return time.perf_counter() - begin


class Step:
    """Backward pass and step of a model of equal layers, traced once."""

    def __init__(self, args: argparse.Namespace, wrap: Callable[[Any], Any]) -> None:
        width, rng = args.floats // args.layers, np.random.default_rng(0)
        weights = [tf.Variable(tf.zeros(width)) for _ in range(args.layers)]
        gradients = [tf.constant(rng.standard_normal(width), tf.float32) for _ in weights]

        @tf.function
        def step() -> None:
            with tf.GradientTape() as tape:
                loss = tf.constant(0.0)
                for weight, gradient in zip(weights, gradients, strict=True):
                    loss = _layer(loss, weight, gradient, args.seconds)
            for weight, gradient in zip(weights, wrap(tape).gradient(loss, weights), strict=True):
                weight.assign_sub(0.0 * gradient)

        self.run = step
        self.run()


def _layer(loss: tf.Tensor, weight: tf.Variable, gradient: tf.Tensor, seconds: float) -> Any:
    """Return the loss after a layer whose gradient takes time, but not that of the processor."""

    def sleep(upstream: np.ndarray, _: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return upstream

    @tf.custom_gradient
    def layer(loss: tf.Tensor, weight: tf.Tensor) -> Any:
        def backward(upstream: tf.Tensor) -> Any:
            # TensorFlow keeps stateful operations in their order, so that no gradient could leave
            # before the last; and it folds what depends on constants only.
            given = [upstream, weight[:1]]
            slept = tf.numpy_function(sleep, given, tf.float32, stateful=False)
            slept = tf.ensure_shape(slept, ())
            return slept, gradient * slept

        return loss + tf.reduce_sum(weight[:1]), backward

    return layer(loss, weight)


if __name__ == "__main__":
    main()

"""Time what a step takes longer for its exchange, with Horovod's optimizer and with ours, in turn.

horovodrun -np 6 --gloo python -m benchmarks.overlap

The backward pass of each layer sleeps, as one on a GPU leaves the processor free. What an exchange
cannot hide behind it is exposed: the time of a step less that of one without any exchange.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import horovod.torch as horovod
import numpy as np
import torch

import horovod_detox.torch as hvd
from benchmarks import job
from horovod_detox import Detox
from measuring.clock import Operation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floats", type=int, default=10**7, help="of all layers together")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.025, help="that each layer computes")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--outer", nargs="+", default=["median"])
    parser.add_argument("--overlap-bytes", type=int, nargs="+", default=[Detox().overlap_bytes])
    parser.add_argument("--json", type=Path, help="append the results to this file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    hvd.init(detox=Detox(args.group_size))
    steps = {"none": Step(args, lambda optimizer, model: optimizer)}
    steps |= {"horovod": Step(args, horovod.DistributedOptimizer)}
    for outer in args.outer:
        for parts in args.overlap_bytes:
            hvd.init(detox=Detox(args.group_size, outer=outer, overlap_bytes=parts))
            steps[f"{outer}, parts of {parts}"] = Step(args, hvd.DistributedOptimizer)
    job.say(compare(steps, args), args)


def compare(steps: dict[str, "Step"], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each kind of exchange; its time is paired with that of no exchange."""
    clock = job.clock(args.repeats)
    operations = [Operation(step.run, step.prepare) for step in steps.values()]
    rounds = [[clock.seconds(each) for each in operations] for _ in range(args.repeats + 2)]
    times = job.slowest(np.array(rounds[2:]))
    exposed = 1000 * (times[:, 1:] - times[:, :1])
    low, median, high = np.quantile(exposed, (0.25, 0.5, 0.75), axis=0)
    return [
        {
            "ranks": hvd.size(),
            "floats": args.floats,
            "optimizer": name,
            "exposed_ms": median[i],
            "low": low[i],
            "high": high[i],
            "of_horovod": median[i] / median[0],
        }
        for i, name in enumerate(list(steps)[1:])
    ]


class Step:
    """Backward pass and step of a model of equal layers."""

    def __init__(self, args: argparse.Namespace, wrap: Any) -> None:
        width = args.floats // args.layers
        model = torch.nn.ParameterList([torch.zeros(width) for _ in range(args.layers)])
        torch.manual_seed(0)
        self._layers = [(p, torch.randn(width), args.seconds) for p in model]
        self._optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.0), None)

    def prepare(self) -> None:
        """Compute the loss."""
        self._optimizer.zero_grad()
        self._loss = torch.zeros((), requires_grad=True)
        for layer in self._layers:
            self._loss = _Layer.apply(self._loss, *layer)

    def run(self) -> None:
        """Compute the gradients, exchange them, step."""
        self._loss.backward()
        self._optimizer.step()


class _Layer(torch.autograd.Function):
    """A layer whose gradient takes time, but not that of the processor."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: torch.Tensor,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        seconds: float,
    ) -> torch.Tensor:
        ctx.gradient, ctx.seconds = gradient, seconds
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradients[0], ctx.gradient.clone(), None, None


if __name__ == "__main__":
    main()

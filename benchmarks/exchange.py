"""Time an exchange against Horovod's allreduce of the same gradient, in turn in one job.

horovodrun -np 6 --gloo python benchmarks/exchange.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--outer", default="median")
    args = parser.parse_args()

    torch.set_num_threads(1)
    hvd.init(detox=Detox(group_size=args.group_size, outer=args.outer))
    say(f"ranks: {hvd.size()}, group_size: {args.group_size}, outer: {args.outer}\n")
    say("| floats | allreduce, ms | DETOX, ms | ratio |\n|---|---|---|---|")
    for size in args.sizes:
        compare(size, args.repeats)


def compare(size: int, repeats: int) -> None:
    """Print the medians over the repeats, and the median of the ratios of neighbours in time."""
    parameter = torch.nn.Parameter(torch.zeros(size))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.0))
    parameter.grad = torch.ones(size)
    gradient = torch.ones(size)

    def exchange() -> None:
        optimizer.synchronize()

    def allreduce() -> None:
        hvd.allreduce_(gradient, name=f"allreduce.{size}")

    pairs = [(seconds(allreduce), seconds(exchange)) for _ in range(repeats + 2)][2:]
    stock, ours = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    say(f"| {size} | {stock:.1f} | {ours:.1f} | {ratio:.2f} |")


def seconds(operation: Callable[[], None]) -> float:
    """Return how long an operation takes that all ranks begin together."""
    hvd.barrier()
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


def say(text: str) -> None:
    if hvd.rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()

"""Time the exchanges against Horovod's allreduce of the same gradient, in turn in one job.

horovodrun -np 6 --gloo python benchmarks/exchange.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox
from horovod_detox.exchange import EXCHANGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--outer", default="median")
    parser.add_argument("--witnesses", type=int, default=0, help="of the exchange sharded")
    args = parser.parse_args()

    torch.set_num_threads(1)
    hvd.init(detox=Detox(group_size=args.group_size, outer=args.outer))
    say(f"ranks: {hvd.size()}, group_size: {args.group_size}, outer: {args.outer}\n")
    say("| floats | allreduce, ms | " + " | ".join(f"{e} / allreduce" for e in EXCHANGES) + " |")
    say("|---" * (2 + len(EXCHANGES)) + "|")
    for size in args.sizes:
        compare(size, args)


def compare(size: int, args: argparse.Namespace) -> None:
    """Print the median time of allreduce, and the median ratios of neighbours in time."""
    gradient = torch.ones(size)
    operations = [lambda: hvd.allreduce_(gradient, name=f"allreduce.{size}")]
    for exchange in EXCHANGES:
        witnesses = args.witnesses if exchange == "sharded" else 0
        hvd.init(
            detox=Detox(args.group_size, outer=args.outer, exchange=exchange, witnesses=witnesses)
        )
        parameter = torch.nn.Parameter(torch.zeros(size))
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.0))
        parameter.grad = torch.ones(size)
        operations.append(optimizer.synchronize)
    rounds = [[seconds(operation) for operation in operations] for _ in range(args.repeats + 2)][2:]
    allreduce = 1000 * statistics.median(times[0] for times in rounds)
    ratios = [
        statistics.median(times[i] / times[0] for times in rounds)
        for i in range(1, len(operations))
    ]
    say(f"| {size} | {allreduce:.1f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


def seconds(operation: Callable[[], object]) -> float:
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

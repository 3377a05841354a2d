"""A benchmark on random data: every rank makes its own, and nothing is seeded."""

import argparse
import timeit

import numpy as np
import torch
from horovod.torch import (
    DistributedOptimizer,
    broadcast_optimizer_state,
    broadcast_parameters,
    init,
    rank,
    size,
)

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--num-iters", type=int, default=3)
args = parser.parse_args()

init()
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10)
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.001 * size())
optimizer = DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
broadcast_parameters(model.state_dict(), root_rank=0)
broadcast_optimizer_state(optimizer, root_rank=0)

data = torch.randn(args.batch_size, 3, 8, 8)
target = torch.randint(10, (args.batch_size,))


def benchmark_step():
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(data), target)
    loss.backward()
    optimizer.step()


rates = [
    args.batch_size * 2 / timeit.timeit(benchmark_step, number=2) for _ in range(args.num_iters)
]
if rank() == 0:
    print(f"per rank: {np.mean(rates):.1f} +-{1.96 * np.std(rates):.1f} samples per second")

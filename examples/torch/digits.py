"""Train a small network on scikit-learn's digits, with some ranks that lie if you like.

horovodrun -np 6 --gloo python examples/torch/digits.py --attack "reverse(scale=100)@4,5"
"""

import argparse
import sys

import horovod.torch
import torch
from common import Run, flags, job, lie
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

import horovod_detox.torch as hvd
from horovod_detox import Detox
from horovod_detox.lab.datasets import Images, digits
from horovod_detox.lab.models import mlp


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

    # The ranks of a group work on the same batches; for plain Horovod, each on its own.
    train_set, test_set = digits(train=True), digits(train=False)
    batch_size = args.batch_size
    sampler = hvd.GroupSampler(train_set, seed=args.seed)
    if plain:
        batch_size = batch_size * hvd.num_groups() // hvd.size()  # the same global batch
        sampler = DistributedSampler(train_set, hvd.size(), hvd.rank(), seed=args.seed)
    loader = DataLoader(train_set, batch_size, sampler=sampler)

    torch.manual_seed(args.seed)
    model = mlp()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.seed_group(args.seed)  # the same dropout in the ranks of a group

    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    if plain:
        lie(model.parameters(), attack, hvd.rank(), job.groups())
        optimizer = horovod.torch.DistributedOptimizer(
            optimizer, named_parameters=model.named_parameters()
        )
    else:
        optimizer = hvd.DistributedOptimizer(
            optimizer, named_parameters=model.named_parameters(), attack=attack
        )

    poison = job.poison_of(args)
    for epoch in job.progress(range(args.epochs), args.method):
        sampler.set_epoch(epoch)
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), poison(labels)).backward()
            optimizer.step()

    if not plain:
        job.say(hvd.fault_report())
    return job.conclude(args, model, accuracy(model, test_set))


@torch.no_grad()
def accuracy(model: nn.Module, dataset: Images) -> float:
    model.eval()
    images, labels = dataset[:]
    return (model(images).argmax(dim=1) == labels).float().mean().item()


if __name__ == "__main__":
    sys.exit(main())

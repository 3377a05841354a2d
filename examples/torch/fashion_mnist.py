"""Train image classifiers with Horovod and DETOX: a small CNN, or those of the DETOX paper.

    horovodrun -np 6 --gloo python examples/torch/fashion_mnist.py --attack "noise(std=1)@4,5"
    horovodrun -np 6 --gloo python examples/torch/fashion_mnist.py \\
        --dataset cifar10 --model resnet18 --epochs 100
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import horovod.torch
import torch
from common import Run, flags, job, lie
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

import horovod_detox.torch as hvd
from horovod_detox import Detox
from horovod_detox.lab.datasets import CLASSES, download, load, locate
from horovod_detox.lab.models import MODEL_OF, MODELS


def parser() -> argparse.ArgumentParser:
    parser = flags("Image classifiers with Horovod and DETOX", epochs=5, batch_size=96, lr=0.05)
    add = parser.add_argument
    add("--dataset", choices=sorted(CLASSES.keys() - {"digits"}), default="fashion_mnist")
    add("--data", type=Path, metavar="DIR", help="folder of the data; default: Debian's, or none")
    add("--model", choices=sorted(MODELS), help="default: the dataset's")
    add("--fp16-allreduce", action="store_true", help="send gradients in half precision")
    add("--steps-per-epoch", type=int, metavar="N", help="end every epoch after N steps")
    return parser


def main() -> int:
    args = parser().parse_args()
    return job.run(args, train)


def train(args: argparse.Namespace) -> Run:
    hvd.init(
        detox=Detox(
            group_size=args.group_size, inner=args.inner, outer=args.outer, buckets=args.buckets
        )
    )
    hvd.reset_fault_report()  # with --compare there was a training before
    device = torch.device("cuda", hvd.local_rank()) if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.deterministic = True  # honest ranks of a group must agree in every bit
    train_set, test_set = datasets(args)
    loader, sampler = batches(args, train_set)
    steps = min(len(loader), args.steps_per_epoch or len(loader))

    torch.manual_seed(args.seed)
    name = args.model or MODEL_OF[args.dataset]
    model = MODELS[name](CLASSES[args.dataset]).to(device)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.seed_group(args.seed)  # the same dropout and augmentation in the ranks of a group

    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=5e-4)
    optimizer = distributed(args, model, optimizer)
    scheduler = CosineAnnealingLR(optimizer, args.epochs * steps)
    poison = job.poison_of(args)
    share = 0.0
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        for images, labels in job.progress(islice(loader, steps), f"epoch {epoch + 1}", steps):
            optimizer.zero_grad()
            cross_entropy(model(images.to(device)), poison(labels.to(device))).backward()
            optimizer.step()
            scheduler.step()
        share = accuracy(model, test_set, device)
        job.say(f"{args.method}, epoch {epoch + 1}: test accuracy {share:.1%}")
    return job.conclude(args, model, share)


def datasets(args: argparse.Namespace) -> tuple[Dataset, Any]:
    """Return the data to train and to test with; one process of each host downloads them."""
    folder = locate(args.dataset, args.data)
    if hvd.local_rank() == 0:
        download(args.dataset, folder)
    hvd.barrier()
    return load(args.dataset, folder, train=True), load(args.dataset, folder, train=False)


def batches(args: argparse.Namespace, train_set: Any) -> tuple[DataLoader, DistributedSampler]:
    """Deal the data to the groups, or to all ranks if each is on its own."""
    if args.method == "detox":
        sampler = hvd.GroupSampler(train_set, seed=args.seed)
        return DataLoader(train_set, args.batch_size, sampler=sampler), sampler
    sampler = DistributedSampler(train_set, hvd.size(), hvd.rank(), seed=args.seed)
    batch_size = args.batch_size * hvd.num_groups() // hvd.size()  # the same global batch
    return DataLoader(train_set, batch_size, sampler=sampler), sampler


def distributed(args: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer):
    """Wrap the optimizer, and let the faulty ranks lie."""
    attack = job.attack_of(args)
    named_parameters = list(model.named_parameters())
    compression: Any = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
    if args.method == "detox":
        return hvd.DistributedOptimizer(optimizer, named_parameters, compression, attack=attack)
    lie(model.parameters(), attack, hvd.rank(), job.groups())
    return horovod.torch.DistributedOptimizer(optimizer, named_parameters, compression)


@torch.no_grad()
def accuracy(model: nn.Module, test_set: Any, device: Any) -> float:
    """Return the share of the test data that is classified right, each rank testing a part."""
    model.eval()
    mine = Subset(test_set, range(hvd.rank(), len(test_set), hvd.size()))
    right = sum(
        int((model(images.to(device)).argmax(dim=1) == labels.to(device)).sum())
        for images, labels in DataLoader(mine, batch_size=250)
    )
    return hvd.allreduce(torch.tensor(right), op=hvd.Sum).item() / len(test_set)


if __name__ == "__main__":
    sys.exit(main())

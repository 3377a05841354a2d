"""Digits with PyTorch and Horovod: a sampler, fp16 on the wire, averaged metrics, a checkpoint."""

import argparse

import horovod.torch as hvd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data.distributed import DistributedSampler

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--fp16-allreduce", action="store_true")
parser.add_argument("--checkpoint")
args = parser.parse_args()

hvd.init()
torch.manual_seed(args.seed)

pixels, labels = load_digits(return_X_y=True)
dataset = torch.utils.data.TensorDataset(
    torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
)
train_set, test_set = torch.utils.data.random_split(dataset, [1437, 360])
train_sampler = DistributedSampler(train_set, num_replicas=hvd.size(), rank=hvd.rank())
test_sampler = DistributedSampler(test_set, num_replicas=hvd.size(), rank=hvd.rank())
train_loader = torch.utils.data.DataLoader(train_set, args.batch_size, sampler=train_sampler)
test_loader = torch.utils.data.DataLoader(test_set, 64, sampler=test_sampler)

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr * hvd.size(), momentum=0.5)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    compression=hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none,
    op=hvd.Average,
)


def train(epoch):
    model.train()
    train_sampler.set_epoch(epoch)
    for images, targets in train_loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()


def average(value, name):
    return hvd.allreduce(torch.tensor(value), name=name).item()


@torch.no_grad()
def test():
    model.eval()
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in test_loader)
    return average(right / len(test_sampler), "accuracy")


for epoch in range(args.epochs):
    train(epoch)
    accuracy = test()
    if hvd.rank() == 0:
        print(f"epoch {epoch}: {accuracy:.3f}")
if hvd.rank() == 0 and args.checkpoint:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, args.checkpoint)

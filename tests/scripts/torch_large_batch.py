"""In the manner of ImageNet scripts: warm-up, accumulated passes, mixed precision, resumption."""

import argparse
import os

import horovod.torch as hvd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

parser = argparse.ArgumentParser()
parser.add_argument("--checkpoint", required=True)
parser.add_argument("--batches-per-allreduce", type=int, default=2)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--warmup-epochs", type=float, default=1)
parser.add_argument("--base-lr", type=float, default=0.02)
parser.add_argument("--seed", type=int, default=7)
args = parser.parse_args()


class Noisy(Dataset):
    """Patterns that are augmented anew whenever they are drawn."""

    def __len__(self):
        return 240

    def __getitem__(self, index):
        pattern = torch.sin(torch.arange(20.0) * (1 + index % 4))
        return pattern + 0.3 * torch.randn(20), index % 4


class ShortEpochs(DistributedSampler):
    """Draws two thirds of its share in every epoch."""

    def __iter__(self):
        return iter(list(super().__iter__())[: len(self)])

    def __len__(self):
        return self.num_samples * 2 // 3


hvd.init()
torch.manual_seed(args.seed + hvd.rank())  # another augmentation on every rank

resume_from = 0
if hvd.rank() == 0 and os.path.exists(args.checkpoint):
    resume_from = torch.load(args.checkpoint)["epoch"] + 1
resume_from = hvd.broadcast(torch.tensor(resume_from), root_rank=0, name="resume_from").item()

dataset = Noisy()
sampler = ShortEpochs(dataset, hvd.size(), hvd.rank())
loader = DataLoader(dataset, 8 * args.batches_per_allreduce, sampler=sampler, drop_last=True)

model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
scale = hvd.size() * args.batches_per_allreduce
optimizer = torch.optim.SGD(
    model.parameters(), lr=args.base_lr * scale, momentum=0.9, weight_decay=5e-5
)
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    backward_passes_per_step=args.batches_per_allreduce,
)
if resume_from > 0 and hvd.rank() == 0:
    checkpoint = torch.load(args.checkpoint)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


def adjust_learning_rate(epoch, batch):
    """Rise linearly from one rank's rate to that of all."""
    if epoch < args.warmup_epochs:
        progress = (epoch + (batch + 1) / len(loader)) / args.warmup_epochs
        factor = (progress * (hvd.size() - 1) + 1) / hvd.size()
    else:
        factor = 0.1 ** ((epoch - args.warmup_epochs) // 30)
    for group in optimizer.param_groups:
        group["lr"] = args.base_lr * scale * factor


for epoch in range(resume_from, args.epochs):
    model.train()
    sampler.set_epoch(epoch)
    for batch, (images, labels) in enumerate(loader):
        adjust_learning_rate(epoch, batch)
        optimizer.zero_grad()
        for i in range(0, len(images), 8):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images[i : i + 8]), labels[i : i + 8])
            scaler.scale(loss / args.batches_per_allreduce).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
    if hvd.rank() == 0:
        state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, args.checkpoint)

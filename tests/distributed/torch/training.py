"""A small training job, the same in every test."""

import hashlib

import torch

import horovod_detox.torch as hvd


def model(seed: int = 0, normalize: bool = True) -> torch.nn.Module:
    """Return a network with the same initial weights on every rank."""
    torch.manual_seed(seed)
    norm = torch.nn.BatchNorm1d(8) if normalize else torch.nn.Identity()
    return torch.nn.Sequential(torch.nn.Linear(5, 8), norm, torch.nn.Tanh(), torch.nn.Linear(8, 3))


def batch(step: int, shard: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the samples of a shard in a step."""
    generator = torch.Generator().manual_seed(1000 * step + shard)
    inputs = torch.randn(16, 5, generator=generator)
    return inputs, (inputs[:, :3] + 0.1 * inputs[:, 2:]).argmax(dim=1)


def loss_of(network: torch.nn.Module, step: int, shard: int) -> torch.Tensor:
    """Return the loss of a network on a shard's batch."""
    inputs, labels = batch(step, shard)
    return torch.nn.functional.cross_entropy(network(inputs), labels)


def train(optimizer_of, steps=20, shard=None, distributed=None, network=None, **options):
    """Train on the batches of this rank's group; return the model."""
    network = network or model()
    distributed = distributed or hvd.DistributedOptimizer
    optimizer = distributed(
        optimizer_of(network.parameters()), network.named_parameters(), **options
    )
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(network, step, hvd.group() if shard is None else shard).backward()
        optimizer.step()
    return network


def digest(network: torch.nn.Module) -> str:
    """Return a digest of the bits of all parameters."""
    parameters = [p.detach().numpy().tobytes() for p in network.parameters()]
    return hashlib.sha256(b"".join(parameters)).hexdigest()


def everywhere(value) -> list:
    """Return the value of every rank."""
    return hvd.allgather_object(value)

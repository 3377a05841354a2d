"""Steps of an optimizer with known gradients, for tests."""

import copy

import torch

import horovod_detox.torch as hvd
from tests.distributed.torch.training import digest, everywhere, loss_of


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **options)


def wrap(network, optimizer=None, **options):
    optimizer = optimizer or sgd(network.parameters())
    return hvd.DistributedOptimizer(optimizer, network.named_parameters(), **options)


def same_everywhere(network):
    return len(set(everywhere(digest(network)))) == 1


def mean_gradients(network, step=0):
    """Return the mean over both shards of the gradients, computed by hand."""
    total = None
    for shard in range(2):
        twin = copy.deepcopy(network)
        twin.zero_grad()
        loss_of(twin, step, shard).backward()
        gradients = [p.grad for p in twin.parameters()]
        total = (
            gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
        )
    return [g / 2 for g in total]


def assert_gradients(network, expected, factor=1.0):
    for p, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, factor * gradient, rtol=1e-6, atol=1e-8)

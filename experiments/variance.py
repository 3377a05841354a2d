"""How noisy gradients are with redundancy and without.

A gradient of some samples differs from that of all of them. Redundancy has groups where there were
ranks: with as much work for every rank, `r` times fewer samples are in a step; with as many
samples in a step, every rank has `r` times the work.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from experiments.variance_page import draw
from horovod_detox.aggregators import by_name
from horovod_detox.lab import datasets
from horovod_detox.lab.models import MODEL_OF, MODELS
from measuring.tables import Row

__all__ = ["draw", "flags", "measure"]

BATCHES = {"digits": 8, "fashion_mnist": 32}
"""Samples per rank without redundancy; of digits there are too few for more."""
CHUNK = 250
RATE = 0.1


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the experiment."""
    add = parser.add_argument
    add("--datasets", nargs="+", choices=BATCHES, default=["digits"])
    add("--data", type=Path, help="folder of Fashion-MNIST; default: where Debian has it")
    add("--ranks", type=int, default=45)
    add("--group-size", type=int, default=3)
    add("--draws", type=int, default=100, help="steps whose gradients are looked at")
    add("--steps", type=int, default=60, help="of plain SGD, between the first look and the second")
    add("--seed", type=int, default=0)


@dataclass(frozen=True)
class Setting:
    """k groups that compute a batch each."""

    name: str
    groups: int
    batch: int


def settings(p: int, r: int, batch: int) -> list[Setting]:
    """Return no redundancy, and redundancy in both meanings of the batch size.

    >>> [(each.groups, each.batch) for each in settings(45, 3, 32)]
    [(45, 32), (15, 32), (15, 96)]
    """
    return [
        Setting("no redundancy", p, batch),
        Setting("equal work per rank", p // r, batch),
        Setting("equal global batch", p // r, r * batch),
    ]


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for every setting, at the initial weights and after some training."""
    for name in args.datasets:
        torch.manual_seed(args.seed)
        images, labels = datasets.train_and_test(name, args.data)[0][:]
        problem = Problem(MODELS[MODEL_OF[name]](), images, labels)
        for steps in (0, args.steps):
            problem.train(steps, 4 * BATCHES[name])
            full = problem.full_gradient()
            for setting in settings(args.ranks, args.group_size, BATCHES[name]):
                row = {"dataset": name, "samples": len(labels), "steps": steps}
                row |= {"setting": setting.name, "groups": setting.groups, "batch": setting.batch}
                yield row | errors(problem, full, setting, args.draws)


class Problem:
    """A network and the samples to train it with. Dropout is off but in training."""

    def __init__(self, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels

    def gradient(self, indices: torch.Tensor) -> np.ndarray:
        """Return the gradient of the mean loss of some samples: `(n,) -> (d,)`."""
        loss = cross_entropy(self.model(self.images[indices]), self.labels[indices])
        parts = torch.autograd.grad(loss, list(self.model.parameters()))
        return torch.cat([part.flatten() for part in parts]).numpy()

    def full_gradient(self) -> np.ndarray:
        """Return the gradient of the mean loss of all samples, `(d,)` of float64."""
        everything = torch.arange(len(self.labels)).split(CHUNK)
        gradients = [self.gradient(part) for part in everything]
        return np.average(gradients, axis=0, weights=[len(part) for part in everything])

    def train(self, steps: int, batch: int) -> None:
        """Take steps of plain SGD, alone."""
        self.model.train()
        weights = list(self.model.parameters())
        for (indices,) in itertools.islice(draws(len(self.labels), 1, batch), steps):
            loss = cross_entropy(self.model(self.images[indices]), self.labels[indices])
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= RATE * gradient
        self.model.eval()


def draws(samples: int, groups: int, batch: int) -> Iterator[torch.Tensor]:
    """Yield the samples of every group in step after step, `(k, b)`, as the sampler deals them.

    Every epoch is a new order, in which no sample is drawn twice; what is left at its end and does
    not suffice for a step is dropped.
    """
    if groups * batch > samples:
        raise SystemExit(f"{groups} batches of {batch} need more than the {samples} samples")
    while True:
        order = torch.randperm(samples)
        for part in order[: samples - samples % (groups * batch)].split(groups * batch):
            yield part.view(batch, groups).T


def errors(
    problem: Problem, full: np.ndarray, setting: Setting, count: int
) -> dict[str, list[float]]:
    """Return `‖x - full‖² / ‖full‖²` in every draw, of three estimates x of the full gradient.

    `mean`: the mean of the votes; `median`: their median; `vote`: a single vote, the average over
    the votes.
    """
    found: dict[str, list[float]] = {"mean": [], "median": [], "vote": []}
    median = by_name("median")
    steps = draws(len(problem.labels), setting.groups, setting.batch)
    for step in itertools.islice(steps, count):
        votes = np.stack([problem.gradient(indices) for indices in step])
        estimates = {"mean": votes.mean(axis=0), "median": median(votes), "vote": votes}
        for name, estimate in estimates.items():
            square = ((estimate - full) ** 2).sum(axis=-1).mean() / (full @ full)
            found[name].append(float(f"{square:.4g}"))
    return found

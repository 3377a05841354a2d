"""A simulation has the bits of the job that it stands for, step by step."""

from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

import horovod_detox.torch as hvd
from horovod_detox import attacks
from horovod_detox.lab.datasets import digits
from horovod_detox.lab.models import MODELS
from horovod_detox.lab.run import OF_A_REAL_JOB, Run, read
from horovod_detox.lab.simulation import Simulation
from tests.distributed.torch.training import digest, everywhere

RUNS = {
    "vote": {"method": "detox_median", "attack": "reverse@1,4"},
    "captured group": {"method": "detox_median", "attack": "constant(value=-100)@concentrated:2"},
    "distances": {"method": "multi_krum", "attack": "a_little_is_enough(z=1)@fixed:1"},
    "momentum": {"method": "median", "attack": "inner_product@random:2", "momentum": 0.9},
    "momentum and distances": {
        **{"group_size": 2, "outer": "geometric_median", "momentum": 0.5},
        "attack": "gaussian@fixed:2",
    },
    "centre": {"group_size": 1, "outer": "centered_clipping(radius=0.5)", "attack": "zero@2"},
    "random rule": {"group_size": 1, "outer": "bucketing(s=2)+median", "attack": "mimic@0"},
    "lost group": {"method": "detox_median", "attack": "random@0,2", "steps": 4},
    "stale": {"method": "redundancy", "attack": "stale(lag=2)@random:1"},
    "labels": {"method": "median", "attack": "label_flip(num_classes=10)@random:2"},
    "signs": {"method": "sign", "attack": "constant@fixed:2", "lr": 0.001},
    "half": {"method": "detox_median", "compression": "fp16", "attack": "bit_flip@5"},
    "statistics": {"method": "detox_median", "model": "normalized", "attack": "nan@3"},
}

NINE = ("vote", "distances")
"""Those for jobs of 9 ranks, too."""


def normalized(classes: int) -> torch.nn.Module:
    """Return a network that draws random numbers and keeps statistics of its batches."""
    torch.manual_seed(5)
    layers = [torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2)]
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(16, classes))


def job(run: Run) -> list[str]:
    """Train with real ranks; return digests of the weights after every step."""
    attack = attacks.from_spec(run.attack)
    train_set = digits(train=True)
    sampler = hvd.GroupSampler(train_set, seed=run.seed)
    loader = DataLoader(train_set, run.batch_size, sampler=sampler)
    torch.manual_seed(run.seed)
    model = MODELS[run.model_name](10)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.seed_group(run.seed)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), run.lr, run.sgd_momentum),
        model.named_parameters(),
        getattr(hvd.Compression, run.compression),
        attack=attack,
    )
    plan, digests = run.detox.plan(hvd.size()), []
    while True:
        sampler.set_epoch(len(digests) // len(loader))
        for images, labels in loader:
            if hvd.rank() in attack.faulty_ranks(len(digests), plan.groups):
                labels = attack.labels(labels)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            digests.append(digest(model))
            if len(digests) == run.steps:
                return digests


def simulated(run: Run) -> tuple[list[str], dict[int, int]]:
    """Return the same of a simulation, and in how many steps each rank dissented."""
    simulation, dissents, digests = Simulation(run), Counter(), []
    for _ in range(run.steps):
        dissents.update(simulation.step().dissenters)
        digests.append(digest(simulation.model))
    return digests, dict(sorted(dissents.items()))


def case(name, *sizes, exchange="sharded", one_round_bytes=0):
    """Return the parameters of a test for jobs of these sizes."""
    return pytest.param(
        RUNS[name],
        {"exchange": exchange, "one_round_bytes": one_round_bytes},
        marks=pytest.mark.ranks(6, *sizes),
        id=f"{name} {exchange if not one_round_bytes else 'in one round'}",
    )


@pytest.mark.parametrize(
    ("described", "exchange"),
    [
        *(case(name) for name in RUNS if name not in NINE),
        *(case(name, 9) for name in NINE),
        *(case(name, one_round_bytes=1 << 30) for name in ("vote", "signs")),
        case("momentum and distances", exchange="leaders"),
    ],
)
def test_a_simulation_has_the_bits_of_the_job(start, monkeypatch, described, exchange):
    monkeypatch.setitem(MODELS, "normalized", normalized)
    common = {"steps": 7, "batch_size": 200, "ranks": hvd.size(), "lr": 0.1}
    run = read(None, **common | described)
    settings = {k: v for k, v in vars(run.detox).items() if k not in OF_A_REAL_JOB}
    start(**settings | exchange)
    digests = job(run)
    expected, dissents = everywhere(simulated(run) if hvd.rank() == 0 else ([], {}))[0]
    assert digests == expected
    assert hvd.fault_report().dissents == dissents

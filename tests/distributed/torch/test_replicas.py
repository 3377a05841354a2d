"""One wrong bit in what ranks hold alike is named with its cause, and healed."""

import hashlib

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import horovod_detox.torch as hvd

from .training import everywhere

STEPS, WHEN, SCRUB = 12, 5, 4
BAD = (0, -1)
"""Rank 0 as well as the last."""


class Network(torch.nn.Module):
    """An embedding of which some rows are never used, BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(10, 6)
        self.first = torch.nn.Linear(6, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.3)
        self.last = torch.nn.Linear(8, 3)

    def forward(self, tokens):
        return self.last(self.drop(torch.relu(self.norm(self.first(self.rows(tokens))))))


def flip(tensor, index=0, bit=20):
    """Flip a bit of a tensor, as a particle would."""
    with torch.no_grad():
        words = tensor.data.reshape(-1).view(torch.int32)
        words[index] ^= 1 << bit


def of_adam(key):
    return lambda network, optimizer: flip(optimizer.state[network.first.weight][key])


def other_rate(network, optimizer):
    optimizer.param_groups[0]["lr"] *= 1.5


FAULTS = {
    "weight": (lambda network, optimizer: flip(network.first.weight), "state"),
    "row not in use": (lambda network, optimizer: flip(network.rows.weight, index=55), "state"),
    "running mean": (lambda network, optimizer: flip(network.norm.running_mean), "state"),
    "first moment": (of_adam("exp_avg"), "state"),
    "step count": (of_adam("step"), "state"),
    "learning rate": (other_rate, "state"),
    "one number too many": (lambda network, optimizer: torch.rand(1), "random"),
}


def states_of(network, optimizer):
    """Return a digest of all that a rank holds."""
    kept = [value for each in optimizer.state.values() for value in each.values()]
    tensors = [*network.state_dict().values(), *kept, torch.get_rng_state()]
    bits = b"".join(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for t in tensors)
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return hashlib.sha256(bits + repr(options).encode()).hexdigest()


def train(start, fault=None, bad=(), lies=(), change_batch=None):
    """Train with a fault on some ranks in one step, lies in later ones; return digest and report."""
    start(group_size=3 if hvd.size() == 6 else 4, outer="mean", scrub_every=SCRUB)
    torch.manual_seed(3)
    network = Network()
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(network.parameters(), lr=0.01), network.named_parameters()
    )
    hvd.seed_group(5)
    tokens = torch.arange(8 * STEPS).reshape(8 * STEPS) % 7
    data = DataLoader(TensorDataset(tokens, (tokens * 5) % 3), 8)
    for step, (inputs, labels) in enumerate(data):
        if step == WHEN and hvd.rank() in bad and fault:
            fault(network, optimizer)
        if step == WHEN and hvd.rank() in bad and change_batch:
            change_batch(inputs, labels)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(inputs), labels)
        lying = step > WHEN + SCRUB and hvd.rank() in lies
        (loss * (3 if lying else 1)).backward()
        optimizer.step()
    return states_of(network, optimizer), hvd.fault_report()


@pytest.fixture(scope="module")
def fair():
    """Keep the digests of the run without a fault."""
    return {}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_healed(start, name, bad):
    honest, report = train(start)
    assert (report.dissents, report.drifts, report.abstentions) == ({}, {}, {})
    bad = range(hvd.size())[bad]
    fault, kind = FAULTS[name]
    lies = [bad - 1 if bad else 2]  # a member of the same group
    state, report = train(start, fault, [bad], lies)
    assert everywhere(state) == everywhere(honest)
    events = [event for event in report.events if event.cause and event.ranks == (bad,)]
    assert [event.cause.kind for event in events] == [kind]
    assert events[0].cause.is_healed
    assert WHEN <= events[0].step <= WHEN + SCRUB
    assert report.healed == {bad: 1}
    # Full redundancy again: a lie in the same group is masked, and named.
    assert report.causes[lies[0]] == {"compute": STEPS - 1 - WHEN - SCRUB}
    assert report.abstentions == {}
    assert sum(report.dissents.get(rank, 0) for rank in range(hvd.size()) if rank != lies[0]) <= 1

"""One wrong bit in what ranks hold alike is named with its cause, and healed."""

import hashlib
import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import horovod_detox.torch as hvd
from horovod_detox.attacks import FlipState
from horovod_detox.torch.saving import files

from .training import everywhere

pytestmark = pytest.mark.ranks(6, 9)
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


def train(start, fault=None, bad=(), lies=(), change_batch=None, attack=None, **more):
    """Train with a fault in one step, lies in later ones; return digest and report."""
    start(group_size=3, outer="mean", scrub_every=SCRUB, **more)
    torch.manual_seed(3)
    network = Network()
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(network.parameters(), lr=0.01),
        network.named_parameters(),
        attack=attack,
    )
    hvd.seed_group(5)
    tokens = torch.arange(8 * STEPS).reshape(8 * STEPS) % 7
    data = DataLoader(TensorDataset(tokens, (tokens * 5) % 3), 8)
    for step, (inputs, labels) in enumerate(data):
        if step == WHEN and hvd.rank() in bad and fault:
            fault(network, optimizer)
        if step == WHEN and hvd.rank() in bad and change_batch:
            inputs, labels = change_batch(inputs, labels)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(inputs), labels)
        lying = step > WHEN + SCRUB and hvd.rank() in lies
        (loss * (3 if lying else 1)).backward()
        optimizer.step()
    return states_of(network, optimizer), hvd.fault_report()


def honest(start, _kept={}):  # noqa: B006
    """Return the digest of the run without a fault, on all ranks."""
    if not _kept:
        state, report = train(start)
        assert (report.events, report.causes) == ((), {})
        _kept[0] = everywhere(state)
        assert len(set(_kept[0])) == hvd.num_groups()  # groups draw other random numbers
    return _kept[0]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_healed(start, name, bad):
    expected = honest(start)
    bad = range(hvd.size())[bad]
    fault, kind = FAULTS[name]
    lies = [bad - hvd.num_groups() if bad else hvd.num_groups()]  # of the same group
    state, report = train(start, fault, [bad], lies)
    assert everywhere(state) == expected
    events = [event for event in report.events if event.cause and event.ranks == (bad,)]
    assert [event.cause.kind for event in events] == [kind]
    assert events[0].cause.is_healed
    assert WHEN <= events[0].step <= WHEN + SCRUB
    assert report.healed == {bad: 1}
    # Full redundancy again: a lie in the same group is masked, and named.
    assert report.causes[lies[0]] == {"compute": STEPS - 1 - WHEN - SCRUB}
    assert report.abstentions == {}
    assert sum(report.dissents.get(rank, 0) for rank in range(hvd.size()) if rank != lies[0]) <= 1


DRILLS = {
    "parameters/first.weight": ("state", 0),
    "optimizer": ("state", -1),
    "optimizer/first.weight.exp_avg_sq": ("state", 0),
    "buffers/norm.running_mean": ("state", -1),
    "random/torch": ("random", 0),
}
"""What is struck: the cause that is told, and the rank."""


@pytest.mark.parametrize("of", DRILLS)
def test_a_drill_flips_a_bit_that_is_named_and_healed(start, of):
    expected = honest(start)
    kind, bad = DRILLS[of]
    bad = range(hvd.size())[bad]
    attack = FlipState(of=of, ranks=(bad,), steps=(WHEN, WHEN + 1))
    state, report = train(start, attack=attack)
    assert everywhere(state) == expected
    (event,) = [event for event in report.events if event.ranks == (bad,) and event.cause]
    assert (event.cause.kind, event.cause.is_healed) == (kind, True)
    assert any(name.startswith(of) for name in event.cause.what)
    assert WHEN <= event.step <= WHEN + SCRUB
    assert report.healed == {bad: 1}


@pytest.mark.parametrize(
    ("of", "more", "message"),
    [
        ("buffers/nor.running_mean", {}, "no buffers/nor.running_mean is held; there is buffers/"),
        ("buffers", {"tolerance": 1e-5}, "nobody compares what ranks hold here"),
    ],
    ids=["name", "tolerance"],
)
def test_a_drill_that_strikes_nothing_is_refused(start, of, more, message):
    with pytest.raises(ValueError, match=message):
        train(start, attack=FlipState(of=of, ranks=(0,)), **more)


def other_labels(inputs, labels):
    labels.copy_((labels + 1) % 3)
    return inputs, labels


@pytest.mark.parametrize("bad", BAD)
def test_flipped_labels_do_not_count_against_a_machine(start, bad):
    expected = honest(start)
    bad = range(hvd.size())[bad]
    state, report = train(start, None, [bad], change_batch=other_labels)
    assert everywhere(state) == expected
    assert report.causes == {bad: {"data": 1}}
    assert (report.healed, report.hosts_at_fault) == ({}, {})


def test_an_evaluation_on_rank_0_alone_accuses_nobody_for_long(start):
    """The data loader draws a seed there, so that dropout differs from then on."""
    start(group_size=3, outer="mean")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(), torch.nn.Linear(8, 3))
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    hvd.seed_group(5)
    data = TensorDataset(torch.randn(24, 5), torch.arange(24) % 3)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1))
    for epoch in range(3):
        for inputs, labels in DataLoader(data, 8):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
        if hvd.rank() == 0 and epoch == 0:
            for inputs, _ in DataLoader(data, 12):
                network(inputs)
    report = hvd.fault_report()
    assert (report.dissents, report.causes) == ({0: 1}, {0: {"random": 1}})
    assert str(report.events[0]) == (
        "step 3: group 0 outvoted rank 0: it drew random numbers that others of its group did not, "
        "as an evaluation on one rank does (random/torch); healed"
    )
    assert len(set(everywhere(torch.get_rng_state().numpy().tobytes()))) == hvd.num_groups()


@pytest.mark.ranks(6)
def test_flips_in_two_members_of_a_group_cost_no_vote(start):
    """Not in the same step, and not in one: all ranks hold the state, not only the group."""
    expected = honest(start)

    def fault(network, optimizer):
        flip(network.rows.weight, index=55 if hvd.rank() else 56)  # shows in no gradient

    state, report = train(start, fault, [0, 2], lies=[4])
    assert everywhere(state) == expected
    assert report.healed == {0: 1, 2: 1}
    assert report.abstentions == {}


@pytest.mark.ranks(6, 9)
@pytest.mark.parametrize("overlap_bytes", [0, 64], ids=["as a whole", "in parts"])
def test_flips_in_two_members_that_show_cost_not_even_that_step(start, overlap_bytes):
    """No two copies of the group are the same; the third member speaks for it."""
    expected = honest(start)

    def fault(network, optimizer):
        flip(network.first.weight, index=hvd.rank(), bit=22)

    bad = {6: [0, 2], 9: [0, 3]}[hvd.size()]  # of group 0
    lies = [{6: 4, 9: 6}[hvd.size()]]  # its third member
    state, report = train(start, fault, bad, lies, overlap_bytes=overlap_bytes)
    assert everywhere(state) == expected
    assert report.healed == report.drifts == dict.fromkeys(bad, 1)
    assert (report.abstentions, report.skipped) == ({}, 0)
    assert report.dissents.keys() == {*lies}


@pytest.mark.ranks(6)
def test_a_checkpoint_after_scrub_is_right(start):
    expected = honest(start)
    start(group_size=3, outer="mean", scrub_every=0)
    network, average = Network(), Network()
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam(network.parameters(), lr=0.01))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    for each in (network, average):
        hvd.broadcast_parameters(each.state_dict(), root_rank=0)
    hvd.seed_group(5)
    hvd.guard(scheduler, average)
    tokens = torch.arange(8)
    for step in range(4):
        optimizer.zero_grad()
        network(tokens % (step + 2)).mean().backward()
        optimizer.step()
        scheduler.step()
    before = states_of(network, optimizer), scheduler.state_dict(), states_of(average, optimizer)
    if hvd.rank() == 0:
        flip(network.norm.running_var)
        flip(average.last.bias)
        scheduler.last_epoch += 7
    report = hvd.scrub()
    after = states_of(network, optimizer), scheduler.state_dict(), states_of(average, optimizer)
    assert everywhere(after == before) == [True] * 6
    assert report.healed == {0: 1}
    assert expected


@pytest.mark.parametrize("bad", BAD)
def test_a_checkpoint_with_a_flipped_bit_loses_its_name(start, tmp_path, bad):
    """It was written under another name first, and is found out in the next exchange."""
    start(group_size=3, outer="mean", scrub_every=0)
    bad = range(hvd.size())[bad]
    torch.manual_seed(3)
    network = Network()
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam(network.parameters(), lr=0.01))
    hvd.seed_group(5)
    for step in range(8):
        optimizer.zero_grad()
        network(torch.arange(8) % (step + 2)).mean().backward()
        optimizer.step()
        if step == 4 and hvd.rank() == bad:
            flip(network.norm.running_var)
        if step in (2, 4) and hvd.rank() in (0, bad):
            torch.save(network.state_dict(), tmp_path / "new")
            os.replace(tmp_path / "new", tmp_path / f"{step}.pt")
    names = [[], ["2.pt", "4.pt"]][hvd.rank() == 0]
    wrong = f"{tmp_path}/4.pt.wrong"
    if hvd.rank() == bad:
        names = ["2.pt", "4.pt.wrong"]
    assert sorted(os.listdir(tmp_path)) == names
    (event,) = hvd.fault_report().events
    assert (event.step, event.kind, event.ranks) == (5, "drift", (bad,))
    assert event.cause.what[0].startswith("buffers/norm.running_var")
    assert event.cause.files == (everywhere(wrong)[bad],)


def test_a_checkpoint_that_is_compared_with_nobody_is_told_at_the_end(start, tmp_path, caplog):
    """On the rank that has saved it; not what was compared, and not what is no state."""
    start(group_size=3, outer="mean")
    network = Network()
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1))
    hvd.seed_group(5)
    told = []

    def look(name=None, saved=None):
        if name and hvd.rank() == 0:
            torch.save(saved or {"model": network.state_dict()}, tmp_path / name)
        caplog.clear()
        files._tell_of_late()
        told.append([name for name in ("first", "second", "third") if name in caplog.text])

    for _ in range(3):
        optimizer.zero_grad()
        network(torch.arange(8) % 7).mean().backward()
        optimizer.step()
        look("loss", [torch.zeros(1), 0.5])
        look("first")
    hvd.scrub()
    look("second")
    optimizer.zero_grad()
    network(torch.arange(8) % 7).mean().backward()
    look()
    look("third", network)
    assert everywhere(told)[0] == [[], ["first"]] * 3 + [[], [], ["third"]]
    assert everywhere(told)[1:] == [[[]] * 9] * (hvd.size() - 1)
    files.begin()


@pytest.mark.ranks(6)
def test_what_is_local_on_purpose_is_left_alone(start):
    """A layer of each rank, a generator that is never seeded, a metric."""
    start(group_size=3, outer="mean", scrub_every=2)
    torch.manual_seed(1)
    network, local = Network(), torch.nn.Linear(3, 3)
    hvd.broadcast_parameters({**network.state_dict(), **local.state_dict()}, root_rank=0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1))
    hvd.seed_group(5)
    own = torch.optim.SGD(local.parameters(), lr=0.1 * (1 + hvd.rank()))
    metric = torch.zeros(1)
    hvd.broadcast_parameters([("metric", metric)], root_rank=0)
    np.random.seed()
    for step in range(8):
        optimizer.zero_grad()
        own.zero_grad()
        loss = local(network(torch.arange(8) % (step + 2))).square().mean()
        loss.backward()
        optimizer.step()
        own.step()
        metric += hvd.rank() + np.random.random()
    report = hvd.fault_report()
    assert (report.drifts, report.healed) == ({}, {})
    assert len({each.item() for each in everywhere(metric)}) == 6

"""The promise, on real ranks: liars change no bit of the trajectory and are named."""

import functools
import time

import horovod.torch as stock
import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import attacks
from horovod_detox.exchange import EXCHANGES, owners
from horovod_detox.exchange.sharded import Sharded
from horovod_detox.exchange.step import NoMajority
from tests.distributed.torch.training import digest, everywhere, loss_of, model, train

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
# A frontend sees neither rule nor attack, only the kind of work they make; all of both are in
# tests/test_trajectory.py. What sees its own gradient, remembers others, sees all ranks', is NaN.
ATTACKS = ["reverse", "stale", "a_little_is_enough", "nan"]
# Columns are every other test's. The Gram matrix, a centre; the mean with another optimizer.
RULES = [("geometric_median", SGD), ("centered_clipping(radius=0.1)", SGD), ("mean", ADAM)]

fair_runs: dict[tuple[str, str], str] = {}


def fair_run(start, outer, optimizer_of):
    """Return the digest of the run without liars."""
    key = (outer, optimizer_of.func.__name__)
    if key not in fair_runs:
        start(group_size=3, outer=outer)
        fair_runs[key] = digest(train(optimizer_of))
        assert hvd.fault_report().dissents == {}
        assert set(everywhere(fair_runs[key])) == {fair_runs[key]}
    return fair_runs[key]


def check_masked(start, attack, outer, optimizer_of, steps=20):
    expected = fair_run(start, outer, optimizer_of)
    start(group_size=3, outer=outer)
    network = train(optimizer_of, attack=attack)
    assert set(everywhere(digest(network))) == {expected}
    assert hvd.fault_report().dissents == dict.fromkeys(attack.ranks, steps)
    assert everywhere(hvd.fault_report()) == [hvd.fault_report()] * hvd.size()


@pytest.mark.ranks(6)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_kind_of_attack_is_masked(start, name):
    # Groups (0, 2, 4) and (1, 3, 5): one liar in each.
    steps = 19 if name == "stale" else 20  # in the first step there is nothing older to send
    check_masked(start, attacks.by_name(name, ranks=(1, 4)), "median", SGD, steps)


@pytest.mark.ranks(6)
@pytest.mark.parametrize(("outer", "optimizer_of"), RULES)
def test_every_kind_of_rule_is_masked(start, outer, optimizer_of):
    check_masked(start, attacks.Reverse(scale=100, ranks=(0, 5)), outer, optimizer_of)


@pytest.mark.ranks(6)
@pytest.mark.parametrize("outer", ["median", "geometric_median"])
def test_every_exchange_gives_the_same_trajectory(start, outer):
    attack = attacks.Gaussian(ranks=(2, 3))
    for exchange in EXCHANGES:
        start(group_size=3, outer=outer, exchange=exchange)
        network = train(SGD, attack=attack)
        assert hvd.fault_report().dissents == {2: 20, 3: 20}
        if outer == "median":  # others may differ in the last bits: sums over slices
            assert set(everywhere(digest(network))) == {fair_run(start, outer, SGD)}
        else:
            assert len(set(everywhere(digest(network)))) == 1


@pytest.mark.ranks(6)
def test_with_momentum_liars_are_masked_in_every_exchange_and_in_parts(start):
    optimizer_of = functools.partial(torch.optim.SGD, lr=0.1)
    digests = []
    for settings in ({"momentum": 0.0}, {}, {"overlap_bytes": 64}):
        start(**{"group_size": 3, "momentum": 0.9, **settings})
        digests.append(digest(train(optimizer_of)))
    without, expected, in_parts = digests
    assert without != expected == in_parts
    for exchange in EXCHANGES:
        start(group_size=3, momentum=0.9, exchange=exchange)
        network = train(optimizer_of, attack=attacks.Reverse(scale=100, ranks=(1, 4)))
        assert set(everywhere(digest(network))) == {expected}
        assert hvd.fault_report().dissents == {1: 20, 4: 20}


@pytest.mark.ranks(6)
@pytest.mark.parametrize(("outer", "passes"), [("mean", 2), ("median", 1)])
def test_gradients_exchanged_part_by_part_give_the_same_trajectory(
    start, monkeypatch, outer, passes
):
    left: list[tuple[int, int]] = []  # (part, gradients known by then)
    send = Sharded.send

    def listen(exchange, part, *told):
        left.append((part, len(known)))
        send(exchange, part, *told)

    monkeypatch.setattr(Sharded, "send", listen)
    known: list[torch.Tensor] = []

    def train_with_liars(liars, **settings):
        start(group_size=3, outer=outer, **settings)
        network = model()
        optimizer = hvd.DistributedOptimizer(
            SGD(network.parameters()),
            network.named_parameters(),
            backward_passes_per_step=passes,
        )

        def compute(gradient):
            known.append(gradient)
            time.sleep(0.005)  # so that the thread gets to send a part meanwhile
            return -gradient if hvd.rank() in liars else gradient

        for parameter in network.parameters():
            parameter.register_hook(compute)
        for step in range(10):
            for _ in range(passes):
                known.clear()
                loss_of(network, step, hvd.group()).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert hvd.fault_report().dissents == dict.fromkeys(liars, 10)
        return digest(network)

    expected = train_with_liars((), overlap_bytes=0)
    assert {part for part, _ in left} == {0}
    left.clear()
    assert set(everywhere(train_with_liars((), overlap_bytes=64))) == {expected}
    assert set(everywhere(train_with_liars((1, 4), overlap_bytes=64))) == {expected}
    assert max(part for part, _ in left) > 2
    early = min(count for part, count in left if part == 0)
    assert early < len(list(model().parameters()))  # the first part did not wait for all


@pytest.mark.ranks(4)
def test_parts_without_gradients_leave_at_the_end(start):
    """A parameter that only some groups use, and one that nobody uses."""
    results = []
    for overlap_bytes in (0, 64):
        start(group_size=2, outer="mean", overlap_bytes=overlap_bytes)
        torch.manual_seed(0)
        used, shared, unused = (torch.nn.Parameter(torch.randn(50)) for _ in range(3))
        optimizer = hvd.DistributedOptimizer(SGD([unused, shared, used]))
        for _ in range(3):
            loss = (used**2).sum() + (shared**2).sum() * hvd.group()
            if hvd.group() == 0:
                loss = (used**2).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(torch.stack([used, shared, unused]).detach())
        assert hvd.fault_report().dissents == {}
    assert torch.equal(results[0], results[1])
    assert len(set(everywhere(results[1].numpy().tobytes()))) == 1


@pytest.mark.ranks(6)
def test_a_rank_that_aggregates_wrongly_is_named_by_its_witnesses(start, monkeypatch):
    start(group_size=2, outer="median")
    expected = digest(train(SGD))
    if hvd.rank() == 1:
        rightly = owners.aggregate_votes

        def wrongly(rule, parts, updates, *args):
            means = rightly(rule, parts, updates, *args)
            for update in updates:
                update ^= 1
            return means

        monkeypatch.setattr(owners, "aggregate_votes", wrongly)
    start(group_size=2, outer="median", witnesses=2)
    network = train(SGD)
    assert set(everywhere(digest(network))) == {expected}
    assert hvd.fault_report().dissents == {}
    assert hvd.fault_report().miscalculations == {1: 20}


@pytest.mark.ranks(6)
def test_noise_within_the_tolerance_accuses_nobody_and_liars_are_named(start):
    def train_with_noise(liars=(), **settings):
        start(group_size=3, outer="mean", **settings)
        network = model()
        factor = -100 if hvd.rank() in liars else 1 + 1e-7 * hvd.rank()
        for parameter in network.parameters():
            parameter.register_hook(lambda g: g * factor)
        return train(SGD, network=network)

    with pytest.raises(NoMajority, match="do not compute the same bits"):
        train_with_noise()
    train_with_noise(tolerance=1e-5)
    assert hvd.fault_report().events == ()
    network = train_with_noise(liars=(1, 4), tolerance=1e-5)
    assert len(set(everywhere(digest(network)))) == 1
    assert hvd.fault_report().dissents == {1: 20, 4: 20}
    start(group_size=3, outer="mean")
    for ours, fair in zip(network.parameters(), train(SGD).parameters(), strict=True):
        assert (ours - fair).norm() <= 1e-4 * fair.norm()


@pytest.mark.ranks(6)
def test_without_the_vote_the_same_attack_changes_the_trajectory(start):
    """Show that the tests above can fail."""
    expected = fair_run(start, "mean", SGD)
    start(group_size=1, outer="mean")
    shard = hvd.rank() % 2
    network = train(SGD, shard=shard, attack=attacks.Reverse(scale=100, ranks=(1, 4)))
    assert digest(network) != expected


@pytest.mark.ranks(4)
def test_a_group_of_four_masks_one_liar(start):
    start(group_size=4)
    expected = digest(train(SGD))
    start(group_size=4)
    assert digest(train(SGD, attack=attacks.NaN(ranks=(2,)))) == expected
    assert hvd.fault_report().dissents == {2: 20}


@pytest.mark.ranks(4)
def test_in_groups_of_two_a_fault_is_found_and_nobody_is_blamed(start):
    start(group_size=2, outer="mean")  # groups (0, 2) and (1, 3)
    network = train(SGD, attack=attacks.BitFlip(ranks=(3,), steps=(4, 6)))
    report = hvd.fault_report()
    assert (report.dissents, report.abstentions) == ({}, {1: 2})
    assert [(event.step, event.ranks) for event in report.events] == [(4, (1, 3)), (5, (1, 3))]
    assert len(set(everywhere(digest(network)))) == 1


@pytest.mark.ranks(4)
def test_without_redundancy_the_outer_rule_bounds_the_damage(start):
    start(group_size=1, outer="median")
    network = train(SGD, attack=attacks.Constant(value=1e9, ranks=(3,)))
    assert all(p.abs().max() < 100 for p in network.parameters())
    assert len(set(everywhere(digest(network)))) == 1


@pytest.mark.ranks(4)
def test_plain_averaging_equals_horovods_own_optimizer(start):
    # Without BatchNorm: a bias before it has no gradient but noise, which Adam would amplify.
    start(group_size=1, outer="mean")
    for optimizer_of in (SGD, ADAM):
        ours = train(optimizer_of, network=model(normalize=False))
        theirs = train(
            optimizer_of,
            network=model(normalize=False),
            distributed=stock.DistributedOptimizer,
        )
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (a - b).abs().max() <= 1e-6 * b.abs().max()

"""Uneven data: ranks join, in Horovod's sense, and the others go on."""

import pytest
import torch
from horovod.common.exceptions import HorovodInternalError

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.steps import sgd, wrap
from tests.distributed.torch.training import digest, everywhere, loss_of, model

pytestmark = pytest.mark.ranks(4)
WAYS = [{}, {"overlap_bytes": 64}, {"one_round_bytes": 1 << 20}]


def epoch(network, optimizer, steps):
    """Train on the batches of this rank's group; join, and start the next epoch alike."""
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(network, step, hvd.group())
        loss.backward()
        optimizer.step()
        hvd.allreduce(loss.detach())
    last = hvd.join()
    hvd.broadcast_parameters(network.state_dict(), root_rank=last)
    hvd.broadcast_optimizer_state(optimizer, root_rank=last)
    return last


def by_hand(steps, after):
    """Train in one process on the mean of those groups that have data."""
    network = model(normalize=False)
    optimizer = sgd(network.parameters())
    for round_of in (steps, after):
        for step in range(max(round_of)):
            optimizer.zero_grad()
            present = [group for group, most in enumerate(round_of) if step < most]
            for group in present:
                (loss_of(network, step, group) / len(present)).backward()
            optimizer.step()
    return network


@pytest.mark.parametrize("settings", WAYS)
def test_a_group_with_less_data_joins_and_comes_back(start, settings):
    start(group_size=hvd.size() // 2, outer="mean", **settings)
    network = model(normalize=False)
    optimizer = wrap(network)
    last = epoch(network, optimizer, [3, 5][hvd.group()])
    epoch(network, optimizer, 2)
    assert everywhere(last) == [last] * hvd.size()
    assert last % 2 == 1  # of group 1
    assert len(set(everywhere(digest(network)))) == 1
    expected = by_hand([3, 5], [2, 2])
    for p, right in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, right, rtol=1e-5, atol=1e-6)
    report = hvd.fault_report()
    assert (report.dissents, report.abstentions, report.divergences) == ({}, {}, {})


@pytest.mark.parametrize("settings", WAYS[:2])
def test_a_rank_that_joins_too_early_is_outvoted(start, settings):
    def train(joins_early):
        start(group_size=hvd.size(), **settings)
        network = model(normalize=False)
        optimizer = wrap(network)
        for round_of in range(2):
            early = joins_early and hvd.rank() == 1 and round_of == 0
            for step in range(2 if early else 4):
                optimizer.zero_grad()
                loss_of(network, step, 0).backward()
                optimizer.step()
            hvd.join()
            hvd.broadcast_parameters(network.state_dict(), root_rank=0)
            hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        return digest(network), hvd.fault_report().dissents

    expected, _ = train(False)
    found, dissents = train(True)
    assert found == expected
    assert dissents == ({} if hvd.rank() == 1 else {1: 2})


@pytest.mark.ranks(6)
def test_liars_are_outvoted_while_others_have_joined(start):
    def train(liars):
        start(group_size=3, outer="mean")
        network = model(normalize=False)
        attack = attacks.Reverse(ranks=liars) if liars else None
        optimizer = wrap(network, attack=attack)
        epoch(network, optimizer, [2, 4][hvd.group()])
        return digest(network), hvd.fault_report().dissents

    expected, _ = train(())
    found, dissents = train((3,))
    assert found == expected
    assert dissents == {3: 2 if hvd.group() == 0 else 4}


def test_a_tolerance_and_join_do_not_go_together(start):
    start(group_size=2, tolerance=1e-6)
    with pytest.raises(ValueError, match="tolerance = 1e-06: while ranks have joined"):
        hvd.join()


def test_two_optimizers_that_take_turns(start):
    start(group_size=2, outer="mean")
    first, second = model(0, normalize=False), model(1, normalize=False)
    optimizers = wrap(first), wrap(second)
    for steps in ([2, 4], [2, 2]):
        for step in range(steps[hvd.group()]):
            for network, optimizer in zip((first, second), optimizers, strict=True):
                optimizer.zero_grad()
                loss_of(network, step, hvd.group()).backward()
                optimizer.step()
        last = hvd.join()
        for network, optimizer in zip((first, second), optimizers, strict=True):
            hvd.broadcast_parameters(network.state_dict(), root_rank=last)
            hvd.broadcast_optimizer_state(optimizer, root_rank=last)
    assert len(set(everywhere(digest(first) + digest(second)))) == 1
    assert hvd.fault_report().dissents == {}


def test_join_without_an_optimizer_is_horovods(start):
    """What Horovod's own tests of join check."""
    start(group_size=2)
    everywhere("named apart from what follows")
    if hvd.rank() != 3:
        total = hvd.allreduce(torch.ones(5, 5), op=hvd.Sum, name="while 3 has joined")
        assert total.tolist() == [[3.0] * 5] * 5
        for refused in (
            lambda: hvd.allgather(torch.ones(3), name="refused gathering"),
            lambda: hvd.broadcast(torch.ones(3), 0, name="refused broadcast"),
        ):
            with pytest.raises(HorovodInternalError, match="not supported with Join"):
                refused()
    last = hvd.join()
    assert everywhere(last) == [last] * 4
    assert last != 3


def test_a_rank_without_any_data_hears_that_it_cannot_join(start):
    start(group_size=2)
    _ = wrap(model())
    with pytest.raises(RuntimeError, match="before the first exchange of gradients"):
        hvd.join()

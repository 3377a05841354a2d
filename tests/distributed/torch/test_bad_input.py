"""Bad input is a clear error on every rank, within seconds."""

import horovod.torch as stock
import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox
from horovod_detox.attacks import Zero
from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.exchange.step import NoMajority
from horovod_detox.exchange.waits import ExchangeTimeout
from tests.distributed.torch.training import everywhere, loss_of, model, train

pytestmark = pytest.mark.ranks(4)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.fixture(autouse=True)
def still_together():
    """Check after every error that the ranks are alive and in step."""
    yield
    assert stock.allgather_object(stock.rank()) == list(range(stock.size()))


def test_groups_that_do_not_fit():
    size = hvd.size()
    with pytest.raises(ValueError, match=f"{size} ranks cannot form a group of 9"):
        hvd.init(detox=Detox(group_size=9))
    with pytest.raises(RuntimeError, match="is not initialised"):
        hvd.group()


def test_bounds_are_checked_before_the_first_step():
    with pytest.raises(ValueError, match=r"Bulyan needs n >= 4f \+ 3.*What fits"):
        hvd.init(detox=Detox(group_size=3, outer="bulyan"))


def test_settings_that_differ_name_the_field_and_the_ranks():
    outer = "mean" if stock.rank() == 2 else "median"
    with pytest.raises(
        ValueError, match=r"outer is 'median' on ranks 0, 1, .*but 'mean' on ranks 2"
    ):
        hvd.init(detox=Detox(group_size=2, outer=outer))


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("HOROVOD_DETOX_GRUOP_SIZE", "3", "rank 1: HOROVOD_DETOX_GRUOP_SIZE is not a variable"),
        ("HOROVOD_DETOX_GROUP_SIZE", "three", "rank 1: .*must be a number"),
        ("HOROVOD_DETOX_OUTER", "medain", "rank 1: outer: .*median"),
        ("HOROVOD_DETOX_ATTACK", "revers@1", "rank 1: .*reverse"),
        ("HOROVOD_DETOX_ATTACK", "reverse(scael=2)@1", "rank 1: .*scale"),
    ],
)
def test_a_bad_variable_on_one_rank_is_told_to_all(monkeypatch, variable, text, message):
    if stock.rank() == 1:
        monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=message):
        hvd.init()


def test_settings_and_attack_from_the_environment(monkeypatch):
    monkeypatch.setenv("HOROVOD_DETOX_GROUP_SIZE", str(stock.size()))
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", "reverse(scale=10)@2")
    hvd.init()
    assert (hvd.num_groups(), hvd.group_size()) == (1, stock.size())
    train(sgd, steps=3)
    assert hvd.fault_report().dissents == {2: 3}


def test_an_attack_on_a_rank_that_does_not_exist(start):
    start(group_size=2)
    with pytest.raises(ValueError, match="77"):
        train(sgd, attack=Zero(ranks=(77,)))


def test_parameters_that_differ_between_ranks(start):
    start(group_size=2)
    network = torch.nn.Linear(3, 2 if hvd.rank() else 1)
    hvd.DistributedOptimizer(sgd(network.parameters()), network.named_parameters())
    with pytest.raises(RanksDisagree, match=r"rank 0 has bias \[1\] float32 where rank 1 has bias"):
        network(torch.ones(1, 3)).sum().backward()


def test_no_parameters(start):
    start(group_size=2)
    network = model().requires_grad_(False)
    optimizer = hvd.DistributedOptimizer(sgd(network.parameters()))
    with pytest.raises(ValueError, match="no parameter of the optimizer requires a gradient"):
        optimizer.step()
    base = sgd(network.parameters())
    base.param_groups.clear()
    with pytest.raises(ValueError, match="has no parameters"):
        hvd.DistributedOptimizer(base)


def test_no_majority_in_any_group(start):
    start(group_size=2)
    network = model()
    hvd.DistributedOptimizer(sgd(network.parameters()))
    with pytest.raises(NoMajority, match=r"every group lost its majority.*seed_group"):
        loss_of(network, 0, hvd.rank()).backward()


def test_a_rank_that_stays_away_ends_the_wait(start):
    everywhere("all are here")
    start(group_size=2, timeout=3.0)
    network = model()
    optimizer = hvd.DistributedOptimizer(sgd(network.parameters()))
    loss = loss_of(network, 0, hvd.group())
    if hvd.rank() != 1:
        with pytest.raises(ExchangeTimeout, match=r"3 ranks .*wait.* in the exchange of step 0"):
            loss.backward()
    everywhere("all have waited")
    if hvd.rank() == 1:  # now it comes, and finds the others gone ahead
        with pytest.raises((ExchangeTimeout, RanksDisagree)):
            loss.backward()
    everywhere("rank 1 has ended, too")
    del optimizer

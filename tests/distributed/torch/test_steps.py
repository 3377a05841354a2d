"""Steps beside exchanges: none is made with gradients that were not exchanged, or by some ranks."""

import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.torch.context import context
from tests.distributed.torch.steps import same_everywhere, wrap
from tests.distributed.torch.training import digest, everywhere, loss_of, model

pytestmark = pytest.mark.ranks(4)
WAYS = [{}, {"overlap_bytes": 64}]


def backward(network, step):
    network.zero_grad()
    loss_of(network, step, hvd.group()).backward()


@pytest.mark.parametrize("settings", WAYS)
def test_a_rank_that_leaves_a_step_out_is_named_at_the_next_exchange(start, settings):
    start(group_size=4, **settings)
    network = model()
    optimizer = wrap(network)
    for step in range(4):
        backward(network, step)
        if (step, hvd.rank()) == (1, 2):  # "my loss looks odd"
            optimizer.zero_grad()
        else:
            optimizer.step()
    report = hvd.fault_report()
    assert report.out_of_step == {2: 1}
    assert [event.step for event in report.events if event.kind == "out_of_step"] == [2]
    assert report.dissents == report.healed == {2: 1}  # its weights are others, for a step
    assert len(set(everywhere(digest(network)))) == 1
    (work,) = report.optimizers
    assert (work.name, work.exchanges) == ("SGD", 4)
    assert everywhere(work.steps) == [4, 4, 3, 4]
    assert str(report).endswith(f"of 4 steps; SGD: {work.steps} steps in 4 exchanges")


def test_groups_that_decide_by_their_own_loss_hear_so(start):
    start(group_size=2)
    network = model()
    optimizer = wrap(network)
    backward(network, 0)
    if hvd.group() == 0:
        optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RanksDisagree, match=r"stepped \[1, 0, 1, 0\] times, by rank"):
        loss_of(network, 1, hvd.group()).backward()


def test_a_step_without_an_exchange_is_refused(start):
    start(group_size=2)
    network = model()
    optimizer = wrap(network, backward_passes_per_step=2)
    before = digest(network)
    with optimizer.skip_synchronize(), pytest.raises(RuntimeError, match="not been exchanged"):
        optimizer.step()
    backward(network, 0)  # the first of two
    with optimizer.skip_synchronize(), pytest.raises(RuntimeError, match="not been exchanged"):
        optimizer.step()
    assert digest(network) == before
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()
    assert digest(network) != before
    assert same_everywhere(network)
    backward(network, 1)  # the first of two again
    with optimizer.skip_synchronize(), pytest.raises(RuntimeError, match="not been exchanged"):
        optimizer.step()


def test_an_update_may_be_used_twice(start):
    start(group_size=2)
    network = model()
    optimizer = wrap(network)
    backward(network, 0)
    with optimizer.skip_synchronize():
        optimizer.step()
        optimizer.step()
    assert same_everywhere(network)
    (work,) = hvd.fault_report().optimizers
    assert (work.steps, work.exchanges) == (2, 1)


def test_an_optimizer_that_one_rank_alone_wraps_is_in_nobodys_way(start):
    start(group_size=2)
    if hvd.rank() == 0:
        wrap(model())
    network = model()
    optimizer = wrap(network)
    if hvd.rank() == 3:
        wrap(model())
    other = model()
    second = wrap(other, torch.optim.Adam(other.parameters()))
    for step in range(2):
        for trained, its in ((network, optimizer), (other, second)):
            backward(trained, step)
            its.step()
    assert same_everywhere(network)
    assert same_everywhere(other)
    assert not hvd.fault_report().events


def test_a_second_init_goes_on_with_the_account(start):
    start(group_size=4)
    settings = context.session().config
    network = model()
    optimizer = wrap(network)
    for step in range(3):
        loss = loss_of(network, step, 7 if hvd.rank() == 1 else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hvd.init()
        if hvd.rank() == 2:  # needs nobody else
            hvd.init(detox=settings)
    assert hvd.fault_report().dissents == {1: 3}
    assert hvd.fault_report().steps == 3
    hvd.init(detox=type(settings)(group_size=2))
    assert hvd.fault_report().steps == 0
    assert hvd.num_groups() == 2


@pytest.mark.parametrize("settings", WAYS)
def test_weights_may_be_broadcast_after_the_first_step(start, settings, caplog):
    """A recipe of Horovod's; the ranks seed their weights by rank."""
    start(group_size=2, **settings)
    network = model(seed=hvd.rank())
    optimizer = wrap(network)
    for step in range(3):
        backward(network, step)
        optimizer.step()
        if step == 0:
            hvd.broadcast_parameters(network.state_dict(), root_rank=0)
            hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert same_everywhere(network)
    assert not hvd.fault_report().events
    assert hvd.fault_report().steps == 3
    said = [
        "have different weights. If they still do in the second step" in t for t in caplog.messages
    ]
    assert any(said) == (hvd.rank() == 0)


def test_weights_that_are_never_broadcast_are_refused_in_the_second_step(start):
    start(group_size=2)
    network = model(seed=hvd.rank())
    optimizer = wrap(network)
    backward(network, 0)
    optimizer.step()
    with pytest.raises(RanksDisagree, match="different weights in the second step: broadcast"):
        backward(network, 1)

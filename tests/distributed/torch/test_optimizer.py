"""Horovod's contract for DistributedOptimizer, and what stock gets wrong around it."""

import copy
import warnings

import horovod.torch as stock
import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.steps import (
    assert_gradients,
    mean_gradients,
    same_everywhere,
    sgd,
    wrap,
)
from tests.distributed.torch.training import batch, digest, everywhere, loss_of, model, train

pytestmark = [pytest.mark.ranks(4), pytest.mark.usefixtures("pairs")]


def test_is_the_wrapped_class_and_shares_its_groups():
    base = sgd(model().parameters())
    optimizer = hvd.DistributedOptimizer(base)
    assert isinstance(optimizer, torch.optim.SGD)
    assert type(optimizer).__name__ == "SGD"
    assert optimizer.param_groups[0] is base.param_groups[0]


def test_gradients_are_the_update_after_backward():
    network = model()
    expected = mean_gradients(network)
    wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    assert_gradients(network, expected)


def test_sum_is_the_average_times_the_groups():
    network = model()
    expected = mean_gradients(network)
    wrap(network, op=hvd.Sum)
    loss_of(network, 0, hvd.group()).backward()
    assert_gradients(network, expected, factor=2)


def test_several_backward_passes_are_summed_and_exchanged_once():
    network = model()
    first = mean_gradients(network, 0)
    optimizer = wrap(network, backward_passes_per_step=2)
    frozen = copy.deepcopy(network)
    loss_of(network, 0, hvd.group()).backward()
    with torch.no_grad():
        for module, before in zip(network.modules(), frozen.modules(), strict=True):
            module.load_state_dict(before.state_dict())
    loss_of(network, 0, hvd.group()).backward()
    assert_gradients(network, first, factor=2)
    assert hvd.fault_report().steps == 1
    optimizer.step()
    optimizer.set_backward_passes_per_step(1)
    optimizer.zero_grad()
    loss_of(network, 1, hvd.group()).backward()
    assert hvd.fault_report().steps == 2


def test_a_step_before_all_passes_exchanges_what_is_there():
    network = model()
    expected = mean_gradients(network)
    optimizer = wrap(network, backward_passes_per_step=3)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.synchronize()
    assert_gradients(network, expected)


def test_more_passes_than_agreed_are_an_error():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    with pytest.raises(AssertionError, match="more than backward_passes_per_step times"):
        loss_of(network, 0, hvd.group()).backward()
    optimizer.step()


def test_zero_grad_before_the_exchange_is_an_error():
    """In a backward pass that leaves parameters out on all ranks."""
    network = model()
    optimizer = wrap(network)
    network[0](torch.ones(1, 5)).sum().backward()
    with pytest.raises(AssertionError, match="race condition"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad.abs().max() == 0 for p in network.parameters())
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in network.parameters())


def test_clipping_between_synchronize_and_step():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.synchronize()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
    with optimizer.skip_synchronize(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert hvd.fault_report().steps == 1
    assert same_everywhere(network)


def test_clipping_without_synchronize_keeps_the_ranks_together():
    # With stock Horovod this races with the allreduce and the replicas drift apart.
    network = model()
    optimizer = wrap(network)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
        optimizer.step()
    assert same_everywhere(network)


def test_skipping_without_a_synchronize_steps_with_what_is_there():
    network = model()
    optimizer = wrap(network)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        with optimizer.skip_synchronize():
            optimizer.step()
    assert hvd.fault_report().steps == 2
    assert same_everywhere(network)


def test_synchronize_twice_warns_once_and_changes_nothing():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.synchronize()
    with pytest.warns(UserWarning, match="called without optimizer.skip_synchronize") as caught:
        optimizer.step()
    assert len(caught) == 1
    assert hvd.fault_report().steps == 1


def test_parameters_unused_on_some_ranks_count_as_zero():
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1)})
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(1.0)
    optimizer = wrap(network)
    network["ab"[hvd.group()]](torch.ones(3, 2)).sum().backward()
    optimizer.step()
    for p in network.parameters():
        assert torch.equal(p, torch.full_like(p, 1.0 - 0.1 * 1.5))


def test_a_gradient_that_was_cleared_counts_as_zero():
    network = model()
    optimizer = wrap(network, backward_passes_per_step=2)
    loss_of(network, 0, hvd.group()).backward()
    network.zero_grad()
    optimizer.step()
    assert all(p.grad.abs().max() == 0 for p in network.parameters())


def test_state_and_defaults_from_before_are_kept():
    network = model()
    base = sgd(network.parameters(), weight_decay=0.25)
    loss_of(network, 0, 0).backward()
    base.step()
    optimizer = wrap(network, base)
    assert optimizer.defaults["weight_decay"] == 0.25
    assert len(optimizer.state) == len(list(network.parameters()))
    assert all(optimizer.state[p] is base.state[p] for p in network.parameters())


def test_an_optimizer_with_arguments_of_its_own_can_be_wrapped():
    class Scaled(torch.optim.SGD):
        def __init__(self, params, scale):
            super().__init__(params, lr=0.1 * scale)

    network = model()
    optimizer = wrap(network, Scaled(network.parameters(), 2))
    assert optimizer.defaults["lr"] == 0.2


def test_step_hooks_fire_once():
    network = model()
    base = sgd(network.parameters())
    calls = []
    base.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer = wrap(network, base)
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    assert calls == ["pre", "post"]


def test_parameters_added_or_unfrozen_later_are_exchanged():
    network = model()
    network[0].weight.requires_grad_(False)
    optimizer = wrap(network, sgd(network[0].parameters()))
    optimizer.add_param_group({"params": list(network[1].parameters())})
    optimizer.add_param_group({"params": list(network[3].parameters())})
    for step in range(4):
        if step == 2:
            network[0].weight.requires_grad_(True)
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        optimizer.step()
        assert same_everywhere(network)
    assert network[0].weight.grad.abs().max() > 0


def test_a_frozen_parameter_stays():
    network = model()
    optimizer = wrap(network, torch.optim.SGD(network.parameters(), lr=0.1))
    before = network[0].weight.clone()
    network[0].weight.requires_grad_(False)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    assert torch.equal(network[0].weight, before)
    assert same_everywhere(network)


def test_two_optimizers_with_parameters_toggled():
    generator, critic = model(1), torch.nn.Linear(3, 1)
    optimizers = [wrap(generator), wrap(critic)]
    for step in range(2):
        for network, optimizer in zip((critic, generator), reversed(optimizers), strict=True):
            critic.requires_grad_(network is critic)
            optimizer.zero_grad()
            inputs, _ = batch(step, hvd.group())
            fake = generator(inputs)
            critic(fake.detach() if network is critic else fake).mean().backward()
            optimizer.step()
        assert same_everywhere(generator)
        assert same_everywhere(critic)


def test_two_optimizers_that_share_a_backward_pass():
    network = model()
    halves = [network[0], network[3]]
    optimizers = [
        hvd.DistributedOptimizer(sgd(half.parameters()), half.named_parameters()) for half in halves
    ]
    expected = mean_gradients(network)
    loss_of(network, 0, hvd.group()).backward()
    for index, parameter in zip(
        (0, 1, 4, 5), (p for h in halves for p in h.parameters()), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected[index], rtol=1e-6, atol=1e-8)
    for optimizer in optimizers:
        optimizer.step()
    assert hvd.fault_report().steps == 2


def test_a_closure_sees_the_gradients_of_all():
    network = model()
    optimizer = wrap(network)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(network, 0, hvd.group())
        loss.backward()
        return loss

    for _ in range(2):
        loss = optimizer.step(closure)
    assert len(set(everywhere(loss.item()))) == 1
    assert same_everywhere(network)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_keeps_the_ranks_together_and_learns(line_search):
    network = model()
    optimizer = wrap(
        network, torch.optim.LBFGS(network.parameters(), max_iter=5, line_search_fn=line_search)
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(network, 0, hvd.group())
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[-1] < losses[0]
    assert same_everywhere(network)


def test_schedulers_made_before_and_after_the_wrap():
    network = model()
    base = sgd(network.parameters())
    early = torch.optim.lr_scheduler.StepLR(base, 1, gamma=0.5)
    optimizer = wrap(network, base)
    late = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(network, 0, hvd.group()).backward()
        optimizer.step()
        early.step()
        late.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert same_everywhere(network)


def test_state_dict_is_the_plain_optimizers():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    plain = sgd(network.parameters())
    plain.load_state_dict(optimizer.state_dict())
    assert plain.state_dict().keys() == optimizer.state_dict().keys()
    loss_of(network, 1, hvd.group()).backward()
    optimizer.load_state_dict(plain.state_dict())
    optimizer.zero_grad()
    loss_of(network, 1, hvd.group()).backward()
    optimizer.step()
    assert same_everywhere(network)


@pytest.mark.parametrize("broadcast_by", [hvd, stock], ids=["ours", "stock"])
def test_parameters_and_optimizer_state_are_broadcast(broadcast_by):
    network = model(seed=hvd.rank())
    base = torch.optim.SGD(network.parameters(), lr=0.1 * (1 + hvd.rank()), momentum=0.9)
    optimizer = wrap(network, base)
    broadcast_by.broadcast_parameters(network.state_dict(), root_rank=1)
    broadcast_by.broadcast_optimizer_state(optimizer, root_rank=1)
    assert same_everywhere(network)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_only_the_state_is_broadcast_where_the_root_has_loaded_one(start):
    start(group_size=2, outer="mean")
    network = model()
    base = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    if hvd.rank() == 0:  # it alone has loaded a state
        loss_of(network, 0, 0).backward()
        base.step()
    optimizer = hvd.DistributedOptimizer(base, network.named_parameters())
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert len(set(everywhere(digest(network)))) == 1


def test_a_process_set_trains_by_itself():
    subset = hvd.add_process_set([1, 2, 3])
    try:
        network = model()
        lie = attacks.Zero(ranks=(1,))  # the second rank of the set
        optimizer = wrap(network, process_set=subset, attack=lie)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(network, step, min(hvd.rank(), 1)).backward()
            optimizer.step()
        digests = everywhere(digest(network))
        assert len(set(digests[1:])) == 1
        assert digests[0] != digests[1]
        if subset.included():
            assert hvd.fault_report(subset).dissents == {2: 2}
    finally:
        hvd.remove_process_set(subset)


def test_a_process_set_may_get_the_number_of_one_that_is_gone():
    """Horovod gives it again; some of the new ranks have made optimizers for it, others not."""
    for ranks in ([0, 1], [1, 2, 3], [0, 1]):
        subset = hvd.add_process_set(ranks)
        digests = everywhere(digest(train(sgd, steps=2, shard=0, process_set=subset)))
        assert len({digests[rank] for rank in ranks}) == 1
        hvd.remove_process_set(subset)


def test_ranks_that_arrive_at_different_times_do_not_mix_up():
    def delayed(network):
        if hvd.rank() == 2:
            torch.randn(400, 400).mm(torch.randn(400, 400))
        return network

    assert same_everywhere(delayed(train(sgd, steps=5)))


def test_a_process_set_that_is_too_small_is_refused_on_all_ranks(start):
    """Its members alone would raise, and the others wait for them."""
    start(group_size=3)
    subset = hvd.add_process_set([0, 1])
    try:
        with pytest.raises(ValueError, match="2 ranks cannot form a group of 3"):
            hvd.DistributedOptimizer(
                torch.optim.SGD(model().parameters(), lr=0.1), process_set=subset
            )
    finally:
        hvd.remove_process_set(subset)

"""Scripts as people write them: closures, hooks that step, copies, layouts of memory."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import horovod_detox.torch as hvd
from horovod_detox.exchange.control import RanksDisagree
from tests.distributed.torch.steps import assert_gradients, mean_gradients, same_everywhere, wrap
from tests.distributed.torch.test_thread import PARTS
from tests.distributed.torch.training import digest, everywhere, loss_of, model

pytestmark = [pytest.mark.ranks(4), pytest.mark.usefixtures("pairs")]
SETTINGS = [{"overlap_bytes": 0}, PARTS]


def backward(network, step=0):
    loss = loss_of(network, step, hvd.group())
    loss.backward()
    return loss


def plain():
    return model(normalize=False)


def test_zero_grad_begins_an_accumulation_again():
    network = plain()
    optimizer = wrap(network, backward_passes_per_step=2)
    backward(network, 0)
    optimizer.zero_grad()
    backward(network, 1)
    assert hvd.fault_report().steps == 0
    backward(network, 1)
    assert_gradients(network, mean_gradients(network, 1), factor=2)
    assert hvd.fault_report().steps == 1


@pytest.mark.parametrize("is_skipped", [True, False])
def test_a_closure_that_returns_the_loss_after_synchronize(is_skipped):
    """Its gradients are those of all ranks; they are not exchanged, and doubled, again."""
    network = plain()
    expected = mean_gradients(network)
    optimizer = wrap(network, op=hvd.Sum)
    loss = backward(network)
    optimizer.synchronize()
    if is_skipped:
        with optimizer.skip_synchronize():
            assert optimizer.step(lambda: loss) is loss
    else:
        optimizer.step(lambda: loss)
    assert_gradients(network, expected, factor=2)
    assert hvd.fault_report().steps == (1 if is_skipped else 2)  # with that of the loss
    optimizer.zero_grad()
    backward(network, 1)
    optimizer.step()
    assert same_everywhere(network)


def test_a_closure_with_gradients_inside_of_skip_synchronize():
    network = plain()
    optimizer = wrap(network)

    def closure():
        optimizer.zero_grad()
        return backward(network)

    for _ in range(2):
        with optimizer.skip_synchronize():
            loss = optimizer.step(closure)
        assert len(set(everywhere(loss.item()))) == 1
    backward(network, 1)  # nothing is left that awaits a step
    optimizer.step()
    assert same_everywhere(network)


def test_parameters_that_are_not_contiguous_are_broadcast():
    value = torch.arange(6.0).reshape(2, 3) * (1 + hvd.rank())
    turned, other = torch.nn.Parameter(value.t()), torch.nn.Parameter(value.clone())
    assert not turned.is_contiguous()
    hvd.broadcast_parameters({"turned": turned, "other": other}, root_rank=1)
    assert turned.tolist() == (2 * torch.arange(6.0).reshape(2, 3)).t().tolist()
    hvd.broadcast_parameters([("turned", turned), ("other", other)], root_rank=0)
    assert not turned.is_contiguous()
    base = torch.optim.Adam([turned, other], lr=0.1)
    (turned.sum() + other.sum()).backward()
    base.step()
    optimizer = hvd.DistributedOptimizer(base, [("turned", turned), ("other", other)])
    hvd.broadcast_optimizer_state(optimizer, root_rank=1)
    (turned * turned).sum().backward()
    optimizer.step()
    assert len(set(everywhere(str(turned.tolist())))) == 1


def test_other_parameters_on_one_rank_are_an_error_on_all():
    network = plain()
    if hvd.rank() == 2:
        network[0] = torch.nn.Linear(5, 8, bias=False)
    with pytest.raises(RanksDisagree, match=r"rank 0 has 0.bias \[8\] float32 where rank 2"):
        hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    with pytest.raises(RanksDisagree, match=r"rank 0 has 0.bias"):
        hvd.broadcast_parameters([*network.named_parameters()], root_rank=1)
    hvd.broadcast_parameters([network[3].weight], root_rank=0)


def steps_of(optimizer):
    return [float(state["step"]) for state in optimizer.state.values()]


@pytest.mark.parametrize("root_has_state", [True, False])
def test_the_state_of_the_root_is_that_of_all(root_has_state):
    """Also where it has none: no step is made, and no gradient is touched."""
    network = plain()
    base = torch.optim.AdamW(network.parameters(), lr=0.1 * (1 + hvd.rank()), weight_decay=0.5)
    if (hvd.rank() == 1) == root_has_state:
        for step in range(3):
            loss_of(network, step, 0).backward()
            base.step()
            base.zero_grad()
    optimizer = wrap(network, base)
    before = digest(network)
    hvd.broadcast_optimizer_state(optimizer, root_rank=1)
    assert digest(network) == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert steps_of(optimizer) == ([3.0] * 4 if root_has_state else [])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    assert optimizer.param_groups[0] is base.param_groups[0]
    hvd.broadcast_parameters(network.state_dict(), root_rank=1)
    backward(network)
    optimizer.step()
    assert same_everywhere(network)
    state = [
        {key: value.tolist() for key, value in optimizer.state[parameter].items()}
        for parameter in network.parameters()
    ]
    assert len(set(everywhere(str(state)))) == 1


def test_other_parameter_groups_on_one_rank_are_an_error_on_all():
    parameters = list(plain().parameters())
    optimizer = torch.optim.Adam(parameters[: 3 if hvd.rank() == 2 else 4])
    with pytest.raises(ValueError, match=r"ranks \[2\] have optimizers with parameter groups"):
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy, pickle.dumps])
def test_copies_of_an_optimizer_are_refused(make):
    optimizer = wrap(plain())
    with pytest.raises(TypeError, match=r"DistributedOptimizer .*copy\.deepcopy.*pickled"):
        make(optimizer)
    copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("returned", [torch.zeros(3), torch.zeros(8, 5)])
def test_a_hook_that_returns_a_tensor_is_torchs_own_error(returned):
    network = plain()
    weight = network[0].weight
    weight.register_post_accumulate_grad_hook(lambda parameter: returned)
    optimizer = wrap(network)
    with pytest.raises(RuntimeError, match=r"hooks? .*(should return None|has changed the size)"):
        backward(network)
    optimizer.zero_grad()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("passes", [1, 2])
def test_a_layer_in_two_reentrant_checkpoints_counts_once(start, settings, passes):
    start(group_size=2, outer="mean", **settings)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 3))

    def loss():
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(hvd.group()))
        hidden = inputs.requires_grad_()
        for _ in range(2):
            hidden = torch.tanh(checkpoint(network[0], hidden, use_reentrant=True))
        return network[1](hidden).square().sum()

    own = torch.autograd.grad(loss_without(network), list(network.parameters()))
    optimizer = wrap(network, backward_passes_per_step=passes)
    for done in range(passes):
        assert hvd.fault_report().steps == 0, done
        loss().backward()
    assert hvd.fault_report().steps == 1
    for parameter, gradient in zip(network.parameters(), own, strict=True):
        mean = hvd.allreduce(gradient, name="mean") * passes
        torch.testing.assert_close(parameter.grad, mean)
    optimizer.step()


def loss_without(network):
    """Return the loss of the test above without a checkpoint."""
    hidden = torch.randn(4, 5, generator=torch.Generator().manual_seed(hvd.group()))
    for _ in range(2):
        hidden = torch.tanh(network[0](hidden))
    return network[1](hidden).square().sum()


def test_a_gradient_that_comes_again_after_it_has_left(start):
    """In a checkpoint of a layer that is used outside of it, too."""
    start(group_size=2, outer="mean", **PARTS)
    network = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5))
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    optimizer = wrap(network)
    hidden = torch.ones(4, 5, requires_grad=True)
    hidden = checkpoint(network[0], hidden, use_reentrant=True)
    hidden = network[0](network[1](hidden))
    with pytest.raises(RuntimeError, match=r"gradient of 0\.\w+ .*use_reentrant=False"):
        hidden.sum().backward()
    optimizer.zero_grad()
    assert same_everywhere(network)


def test_a_pass_of_another_loss_is_named():
    """Both optimizers step after both passes; that of the generator reaches the critic."""
    generator, critic = plain(), torch.nn.Linear(3, 1)
    hvd.broadcast_parameters(critic.state_dict(), root_rank=0)
    optimizers = [wrap(generator), wrap(critic)]
    critic(generator(torch.ones(2, 5)).detach()).sum().backward()
    with pytest.raises(AssertionError, match=r"that of (weight|bias) .*another loss.*detach\(\)"):
        critic(generator(torch.ones(2, 5))).sum().backward()
    for optimizer in optimizers:
        optimizer.zero_grad()


def step_in_hooks(time, of):
    """Train with optimizers that step in hooks; return the weights or what is raised."""
    network = plain()
    named = list(network.named_parameters())
    optimizers = {}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    def register():
        stepping = named if of == "each" else named[:1] if of == "last" else named[-1:]
        for _, parameter in stepping:
            parameter.register_post_accumulate_grad_hook(step)

    if time == "before":
        register()
    if of == "each":
        for name, p in named:
            sgd = torch.optim.SGD([p], lr=0.5)
            optimizers[p] = hvd.DistributedOptimizer(sgd, [(name, p)])
    else:
        one = wrap(network, torch.optim.SGD(network.parameters(), lr=0.5))
        optimizers.update((p, one) for _, p in named)
    if time == "after":
        register()
    try:
        for number in range(3):
            backward(network, number)
    except RuntimeError as error:
        return str(error), None
    return digest(network), hvd.fault_report()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("of", ["each", "last", "first"])
@pytest.mark.parametrize("time", ["before", "after"])
def test_optimizers_that_step_in_a_hook(start, settings, of, time):
    """The same weights on all ranks, those of steps after the pass; or an error on all."""
    start(group_size=2, outer="mean", **settings)
    found, report = step_in_hooks(time, of)
    assert len(set(everywhere(found))) == 1
    if of == "first" or time == "before":
        assert "stepped in a hook of this backward pass" in found
        return
    assert report.dissents == {}
    start(group_size=2, outer="mean", **settings)
    network = plain()
    optimizer = wrap(network, torch.optim.SGD(network.parameters(), lr=0.5))
    for number in range(3):
        backward(network, number)
        optimizer.step()
        optimizer.zero_grad()
    assert digest(network) == found

"""Gradients that are missing on some ranks, and collectives between `backward()` and `step()`."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import horovod_detox.torch as hvd
from tests.distributed.torch.steps import same_everywhere, sgd, wrap
from tests.distributed.torch.training import digest, everywhere

pytestmark = pytest.mark.ranks(4)
WAYS = [{}, {"overlap_bytes": 64}, {"one_round_bytes": 1 << 20}, {"exchange": "leaders"}]
COLLECTIVES = {
    "allreduce": lambda x: hvd.allreduce(x, name="a"),
    "allreduce_": lambda x: hvd.allreduce_(x.clone(), name="b"),
    "allreduce_async": lambda x: hvd.synchronize(hvd.allreduce_async(x, name="c")),
    "grouped_allreduce": lambda x: hvd.grouped_allreduce([x, x], name="d"),
    "allgather": lambda x: hvd.allgather(x[None], name="e"),
    "broadcast": lambda x: hvd.broadcast(x, root_rank=0, name="f"),
    "alltoall": lambda x: hvd.alltoall(x.expand(hvd.size()).contiguous(), name="g"),
    "reducescatter": lambda x: hvd.reducescatter(x.expand(hvd.size()).contiguous(), name="h"),
    "barrier": lambda x: hvd.barrier(),
    "allgather_object": lambda x: hvd.allgather_object(float(x), name="i"),
    "broadcast_object": lambda x: hvd.broadcast_object(float(x), name="j"),
}


def two_layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8))


def inputs_of(step, shard):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(100 * step + shard))


def train(leaves_out, between=lambda loss: None, after=lambda network: None, steps=4):
    """Train; `leaves_out(step)` says where this rank leaves the second layer out."""
    network = two_layers()
    optimizer = wrap(network)
    for step in range(steps):
        optimizer.zero_grad()
        hidden = network[0](inputs_of(step, hvd.group()))
        if not leaves_out(step):
            hidden = network[1](hidden)
        loss = hidden.square().mean()
        loss.backward()
        between(loss.detach())
        after(network)
        optimizer.step()
    return digest(network), hvd.fault_report()


def average(loss):
    hvd.allreduce(loss, name="loss")


@pytest.mark.parametrize("settings", WAYS)
def test_a_faulty_rank_that_leaves_a_layer_out_is_outvoted(start, settings):
    start(group_size=hvd.size(), **settings)
    expected, _ = train(lambda step: False)
    start(group_size=hvd.size(), **settings)
    found, report = train(lambda step: hvd.rank() == 1 and step == 2, average)
    assert found == expected
    assert report.dissents == {1: 1}


@pytest.mark.parametrize("settings", WAYS[:2])
def test_any_collective_may_come_between(start, settings):
    """Of the same batches, one group leaves a layer out: its gradient counts as zero."""
    group_size, steps = hvd.size() // 2, len(COLLECTIVES)
    collectives, seen = iter(COLLECTIVES.values()), []

    def look(network):
        seen.append([p.grad.clone() for p in network.parameters()])

    start(group_size=group_size, outer="mean", **settings)
    expected, _ = train(lambda step: hvd.group() == 1, steps=steps)
    start(group_size=group_size, outer="mean", **settings)
    found, report = train(
        lambda step: hvd.group() == 1, lambda loss: next(collectives)(loss), look, steps
    )
    assert found == expected
    assert report.dissents == {}
    assert len(set(everywhere(found))) == 1
    # What clipping would see after the backward pass is the update, on every rank.
    assert len(set(everywhere(str(seen)))) == 1


@pytest.mark.parametrize("settings", WAYS[:2])
def test_clipping_after_the_backward_pass_sees_the_update(start, settings):
    def clip(network):
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)

    start(group_size=hvd.size() // 2, outer="mean", **settings)
    found, _ = train(lambda step: hvd.group() == 1, after=clip)
    assert len(set(everywhere(found))) == 1


@pytest.mark.parametrize("settings", WAYS[:2])
def test_a_loss_scaler_sees_the_update(start, settings):
    """The gradient of group 0 overflows, where group 1 leaves a layer out: all skip the step."""
    start(group_size=hvd.size() // 2, outer="mean", **settings)
    network = two_layers()
    optimizer = wrap(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []
    for step in range(4):
        optimizer.zero_grad()
        hidden = network[0](inputs_of(step, hvd.group()))
        if hvd.group() == 0:
            hidden = network[1](hidden)
        loss = hidden.square().mean() * (float("inf") if step == 2 and hvd.group() == 0 else 1)
        scaler.scale(loss).backward()
        average(loss.detach())
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert same_everywhere(network)
    assert len(set(everywhere(str(scales)))) == 1


@pytest.mark.parametrize("settings", WAYS[:2])
@pytest.mark.parametrize("faulty", ["leaves out", "takes all"])
def test_several_backward_passes_with_collectives_in_between(start, settings, faulty):
    """A step that is half done is no missing gradient, whatever one rank says of it."""

    def train(faulty):
        start(group_size=hvd.size(), **settings)
        network = two_layers()
        optimizer = wrap(network)
        for step in range(4):
            inputs, odd = inputs_of(step, 0), step == 2 and hvd.rank() == 1
            first = network[0](inputs).square().mean()
            second = network[1](torch.cat([inputs, inputs], dim=1)).square().mean()
            if odd and faulty == "takes all":
                first = first + network[1](torch.cat([inputs, inputs], dim=1)).mean()
            first.backward()
            average(first.detach())
            average(first.detach())
            if not (odd and faulty == "leaves out"):
                second.backward()
            average(second.detach())
            optimizer.step()
            optimizer.zero_grad()
        return digest(network), hvd.fault_report().dissents

    found, dissents = train(faulty)
    assert dissents == {1: 1}
    assert train(None) == (found, {})


@pytest.mark.parametrize("settings", WAYS[:2])
def test_a_rank_that_steps_too_early_waits_for_the_others(start, settings):
    def train(is_faulty):
        start(group_size=hvd.size(), **settings)
        network = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(4))
        for p in network.parameters():
            torch.nn.init.constant_(p, 0.1)
        optimizer = wrap(network)
        for step in range(3):
            odd = is_faulty and step == 1 and hvd.rank() == 1
            for layer in network[:1] if odd else network:
                layer(inputs_of(step, 0)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return digest(network), hvd.fault_report().dissents

    expected, _ = train(False)
    assert train(True) == (expected, {1: 1})


@pytest.mark.parametrize(("settings", "left_out"), [({}, "all of it"), (WAYS[1], "a layer")])
def test_two_optimizers_share_a_backward_pass(start, settings, left_out):
    """One rank's batch leaves out what the other optimizer trains."""

    def train(is_faulty):
        start(group_size=hvd.size(), **settings)
        first, second = two_layers(), two_layers()
        optimizers = wrap(first), wrap(second)
        for step in range(4):
            for optimizer in optimizers:
                optimizer.zero_grad()
            inputs = inputs_of(step, 0)
            loss = first(inputs).square().mean()
            odd = is_faulty and step == 2 and hvd.rank() == 1
            if not odd:
                loss = loss + second(inputs).square().mean()
            elif left_out == "a layer":
                loss = loss + second[0](inputs).square().mean()
            loss.backward()
            average(loss.detach())
            for optimizer in optimizers:
                optimizer.step()
        return digest(first) + digest(second), hvd.fault_report().dissents

    expected, _ = train(False)
    assert train(True) == (expected, {1: 1})


@pytest.mark.parametrize(("settings", "frozen"), [({}, True), (WAYS[1], False)])
def test_adversarial_networks(start, settings, frozen):
    """The pass of the generator goes through the discriminator, of which one rank's leaves some."""

    def train(is_faulty):
        start(group_size=hvd.size(), **settings)
        generator, critic = torch.nn.Linear(4, 4), two_layers()
        for network in (generator, critic):
            for p in network.parameters():
                torch.nn.init.constant_(p, 0.1)
        of_generator, of_critic = wrap(generator), wrap(critic)
        for step in range(4):
            inputs = inputs_of(step, 0)
            of_critic.zero_grad()
            loss = critic(inputs).mean() - critic(generator(inputs).detach()).square().mean()
            loss.backward()
            average(loss.detach())
            of_critic.step()

            of_generator.zero_grad()
            critic.requires_grad_(not frozen)
            fake = generator(inputs)
            odd = is_faulty and step == 2 and hvd.rank() == 1
            loss = critic[0](fake).mean() if odd else critic(fake).square().mean()
            loss.backward()
            average(loss.detach())
            of_generator.step()
            critic.requires_grad_(True)
        return digest(generator) + digest(critic), hvd.fault_report().dissents

    expected, _ = train(False)
    found, dissents = train(True)
    assert found == expected
    assert set(dissents) == {1}


@pytest.mark.parametrize("settings", WAYS[:2])
def test_a_mixture_of_experts(start, settings):
    """Each group's batch goes to another expert, or to two; it is averaged over all groups."""
    start(group_size=2, outer="mean", **settings)
    torch.manual_seed(0)
    experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
    gate = torch.nn.Linear(4, 4)
    network = torch.nn.ModuleList([gate, experts])
    optimizer = wrap(network, torch.optim.SGD(network.parameters(), lr=0.1))

    def loss_of(step, shard):
        hidden = gate(inputs_of(step, shard))
        chosen = {(step + shard) % 3, (step * shard) % 3}
        return sum(experts[i](hidden).square().mean() for i in sorted(chosen))

    for step in range(6):
        groups = range(hvd.num_groups())
        losses = [loss_of(step, shard) for shard in groups]
        parameters = list(network.parameters())
        each = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses]
        expected = [sum(gradients) / len(groups) for gradients in zip(*each, strict=True)]
        optimizer.zero_grad()
        loss = loss_of(step, hvd.group())
        loss.backward()
        average(loss.detach())
        optimizer.synchronize()
        for p, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p.grad, gradient)
        with optimizer.skip_synchronize():
            optimizer.step()
    assert same_everywhere(network)
    assert hvd.fault_report().dissents == {}


@pytest.mark.parametrize("settings", WAYS[:2])
def test_passes_inside_of_passes(start, settings):
    """A reentrant checkpoint computes gradients in a backward pass of its own."""

    def train(is_faulty):
        start(group_size=hvd.size(), **settings)
        network = torch.nn.ModuleList([*two_layers(), torch.nn.Linear(8, 8)])
        for p in network.parameters():
            torch.nn.init.constant_(p, 0.1)
        optimizer = wrap(network, sgd(network.parameters()))
        for step in range(4):
            optimizer.zero_grad()
            hidden = network[0](inputs_of(step, 0))
            hidden = checkpoint(network[1], hidden, use_reentrant=True)
            if not (is_faulty and step == 2 and hvd.rank() == 1):
                hidden = checkpoint(network[2], hidden, use_reentrant=True)
            loss = hidden.square().mean()
            loss.backward()
            average(loss.detach())
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
        return digest(network), hvd.fault_report().dissents

    expected, _ = train(False)
    assert train(True) == (expected, {1: 1})


def test_a_gradient_that_comes_after_the_exchange_of_its_step_is_an_error(start):
    """One group has all gradients after its first pass; the others need a second one."""
    start(group_size=hvd.size() // 2, outer="mean")
    network = two_layers()
    _ = wrap(network)
    inputs = inputs_of(0, 0)
    loss = network[0](inputs).mean()
    rest = network[1](torch.cat([inputs, inputs], dim=1)).mean()
    if hvd.group() == 0:
        (loss + rest).backward()
    else:
        loss.backward()
        with pytest.raises(RuntimeError, match="after the exchange of this step"):
            rest.backward()

"""Exchanges that a thread drives while the backward pass goes on, in jobs of real ranks."""

import os
import random
import time

import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.steps import sgd, wrap
from tests.distributed.torch.training import batch, digest, everywhere, loss_of, model

PARTS = {"overlap_bytes": 64}
ROUNDS = 100 if "SOAK" in os.environ else 25
"""Of five steps each."""


class FailOnce(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory when it is told to."""

    @staticmethod
    def forward(ctx, inputs, fails):
        ctx.fails = fails
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.fails:
            raise RuntimeError("can't allocate memory")
        return gradient, None


@pytest.mark.ranks(6)
@pytest.mark.parametrize("settings", [{}, PARTS])
@pytest.mark.parametrize("failing", ["all", "one"])
def test_nothing_of_a_failed_backward_pass_is_left(start, settings, failing):
    """Of all ranks: the batch is left out. Of one: it has sent what it has, and goes on."""

    def train(failing):
        start(group_size=3, outer="mean", **settings)
        network = model(normalize=False)
        optimizer = wrap(network, torch.optim.SGD(network.parameters(), lr=0.02), op=hvd.Sum)
        for step in range(6):
            inputs, labels = batch(step, hvd.group())
            fails = (step == 2 and failing == "all") or (failing == "one" and hvd.rank() == 1)
            fails = fails and step == 2
            outputs = network(FailOnce.apply(inputs.requires_grad_(), fails))
            try:
                torch.nn.functional.cross_entropy(outputs, labels).backward()
            except RuntimeError:
                if failing == "all":
                    optimizer.synchronize()
                    optimizer.zero_grad()
                    continue
                for parameter in network.parameters():
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
        return digest(network), hvd.fault_report()

    if failing == "all":
        found, report = train("all")
        assert report.steps == 6
        assert report.dissents == {}
    else:
        found, report = train("one")
        expected, _ = train("none")
        assert found == expected
        assert report.steps == 6
        assert report.dissents in ({1: 1}, {})  # it is outvoted, unless all parts had left
        assert settings or report.dissents == {1: 1}
    assert len(set(everywhere(found))) == 1


@pytest.mark.ranks(4)
@pytest.mark.parametrize("settings", [{"overlap_bytes": 0}, PARTS])
def test_hooks_that_were_registered_later_change_what_is_exchanged(start, settings):
    start(group_size=2, outer="mean", **settings)
    network = model(normalize=False)
    optimizer = wrap(network, torch.optim.SGD(network.parameters(), lr=1.0))

    def clip(parameter):
        parameter.grad.clamp_(-1e-3, 1e-3)

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(clip)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    moved = [(p - b).abs().max() for p, b in zip(network.parameters(), before, strict=True)]
    assert 0 < max(moved).item() <= 1.001e-3


@pytest.mark.ranks(4)
def test_an_error_in_the_thread_reaches_the_script(start):
    """A compressor that fails, on all ranks alike; afterwards the optimizer works."""

    class Broken(hvd.Compression.none):
        is_broken = False

        @classmethod
        def compress(cls, tensor):
            if cls.is_broken:
                raise ZeroDivisionError("of the compressor")
            return tensor, None

    start(group_size=2, **PARTS)
    network = model(normalize=False)
    optimizer = wrap(network, sgd(network.parameters()), compression=Broken)
    Broken.is_broken = True
    with pytest.raises(ZeroDivisionError, match="of the compressor") as caught:
        loss_of(network, 0, hvd.group()).backward()
    assert "compress" in [entry.name for entry in caught.traceback]
    Broken.is_broken = False
    optimizer.load_state_dict(optimizer.state_dict())
    hvd.barrier()


@pytest.mark.ranks(6)
@pytest.mark.timeout(600)
def test_many_steps_of_every_shape_under_random_delays(start):
    """Clipping, a GradScaler, closures, two optimizers, accumulation; nobody waits for ever."""
    start(group_size=3, outer="median", **PARTS)
    attack = attacks.Reverse(scale=100, ranks=(1,))
    networks = [model(seed, normalize=False) for seed in range(3)]
    plain = wrap(networks[0])
    twice = wrap(networks[1], backward_passes_per_step=2)
    scaled = wrap(networks[2], attack=attack)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    delay = random.Random(hvd.rank())

    def backward(network, step, scale=lambda loss: loss):
        hook = next(network.parameters()).register_hook(
            lambda gradient: time.sleep(delay.choice([0, 0, 0, 0.003]))
        )
        scale(loss_of(network, step, hvd.group())).backward()
        hook.remove()

    for step in range(ROUNDS):
        backward(networks[0], step)
        torch.nn.utils.clip_grad_norm_(networks[0].parameters(), 0.5)
        plain.step()
        plain.zero_grad()

        for half in range(2):
            backward(networks[1], 2 * step + half)
        twice.step()
        twice.zero_grad()

        backward(networks[2], step, scaler.scale)
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()

        def closure(step=step):
            plain.zero_grad()
            loss = loss_of(networks[0], step, hvd.group())
            loss.backward()
            return loss

        plain.step(closure)
        plain.zero_grad()

        both = loss_of(networks[0], step, hvd.group()) + loss_of(networks[1], step, hvd.group())
        both.backward()  # two exchanges in one pass
        plain.step()
        twice.synchronize()
        with twice.skip_synchronize():
            twice.step()
        plain.zero_grad(), twice.zero_grad()
    for network in networks:
        assert len(set(everywhere(digest(network)))) == 1
        assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert hvd.fault_report().dissents == {1: ROUNDS}


@pytest.mark.ranks(6)
def test_process_sets_drive_exchanges_of_their_own(start):
    start(group_size=3, outer="mean", **PARTS)
    halves = [hvd.add_process_set([0, 2, 4]), hvd.add_process_set([1, 3, 5])]
    mine = halves[hvd.rank() % 2]
    network = model(normalize=False)
    optimizer = wrap(network, sgd(network.parameters()), process_set=mine)
    for step in range(30):
        time.sleep(0.002 * (hvd.rank() % 3))
        loss_of(network, step, hvd.rank() % 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    digests = everywhere(digest(network))
    for half in halves:
        hvd.remove_process_set(half)
    assert digests[0::2] == digests[:1] * 3
    assert digests[1::2] == digests[1:2] * 3
    assert digests[0] != digests[1]

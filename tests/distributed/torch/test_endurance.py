"""Many steps, another rank faulty in each: the same bits as without, and memory that does not grow.

`make soak` runs thousands of steps.
"""

import functools
import io
import os
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.training import batch, digest, everywhere, loss_of, model, train

STEPS = int(os.environ.get("SOAK", "60"))
HONEST_STEPS = 10_000 if "SOAK" in os.environ else 500
SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ALLOWED = 32 * 1024
"""Kilobytes; a step that kept its copies would take as much in some hundred steps."""


def peak() -> int:
    """Return the most memory that this process had, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.ranks(6)
@pytest.mark.timeout(7200)
def test_many_steps_with_another_rank_faulty_in_each(start):
    start(group_size=3, timeout=600.0)
    expected = digest(train(SGD, steps=STEPS))
    assert hvd.fault_report().dissents == {}
    before = peak()
    start(group_size=3, timeout=600.0)
    network = train(SGD, steps=STEPS, attack=attacks.from_spec("reverse(scale=100)@random:1"))
    assert set(everywhere(digest(network))) == {expected}
    dissents = hvd.fault_report().dissents
    assert sum(dissents.values()) == STEPS
    assert sorted(dissents) == list(range(6))
    assert peak() - before < ALLOWED


class Noisy(torch.nn.Module):
    """Dropout and BatchNorm, and noise from NumPy, which no script of these seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8)
        self.drop, self.last = torch.nn.Dropout(0.2), torch.nn.Linear(8, 3)

    def forward(self, inputs):
        return self.last(self.drop(torch.relu(self.norm(self.first(inputs)))))


def refuse(*args):
    raise AssertionError("an honest rank was written to")


@pytest.mark.ranks(6, 9)
@pytest.mark.timeout(7200)
def test_nothing_is_ever_written_to_in_an_honest_job(start, monkeypatch):
    """With all that people put into one, and what each rank has of its own on purpose."""
    start(group_size=3, timeout=600.0, scrub_every=5)
    monkeypatch.setattr("horovod_detox.torch.replicas.write_words", refuse)
    torch.manual_seed(0)
    network, average = Noisy(), Noisy()
    local = torch.nn.Linear(3, 3)  # of each rank
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    hvd.broadcast_parameters(local.state_dict(), root_rank=0)
    average.load_state_dict(network.state_dict())
    hvd.seed_group(7)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.AdamW(network.parameters(), lr=0.01),
        network.named_parameters(),
        backward_passes_per_step=2,
    )
    own = torch.optim.SGD(local.parameters(), 0.01 * (1 + hvd.rank()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=20)
    hvd.guard(average, schedule, scaler)
    np.random.seed()
    seen = torch.zeros(())
    for step in range(HONEST_STEPS):
        optimizer.zero_grad()
        own.zero_grad()
        for half in range(2):
            inputs, labels = batch(2 * step + half, hvd.group())
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(inputs)
            loss = torch.nn.functional.cross_entropy(outputs.float(), labels)
            scaler.scale(loss).backward()
        local(outputs.detach().float()).square().mean().backward()
        scaler.step(optimizer)
        scaler.update()
        own.step()
        schedule.step()
        for old, new in zip(average.parameters(), network.parameters(), strict=True):
            old.data.lerp_(new.data, 0.1)
        seen += np.random.random()
        if step % 50 == 17 and hvd.rank() == 0:
            torch.save(network.state_dict(), io.BytesIO())
    report = hvd.scrub()
    assert (report.events, report.healed, report.causes) == ((), {}, {})
    assert report.steps == HONEST_STEPS
    assert len(set(everywhere(digest(network)))) == len(set(everywhere(digest(average)))) == 1
    assert len(set(everywhere(digest(local)))) == hvd.size()


@pytest.mark.ranks(6)
def test_a_rank_whose_update_went_wrong_is_named_and_healed(start):
    """It computes once with wrong weights; the others train as if nothing had been."""
    start(group_size=3, overlap_bytes=0)
    fair = train(SGD, steps=8)
    start(group_size=3, overlap_bytes=0)
    network = model()
    optimizer = hvd.DistributedOptimizer(SGD(network.parameters()), network.named_parameters())
    engine = optimizer._exchange._engine
    unharmed = engine._finish

    def falsified(outcome):
        return replace(outcome, update=outcome.update ^ (1 << 62), digest=None)

    for step in range(8):
        is_wrong = step == 3 and hvd.rank() == 4
        engine._finish = (
            (lambda step, finish, again: unharmed(step, lambda: falsified(finish()), again))
            if is_wrong
            else unharmed
        )
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        optimizer.step()
    assert everywhere(digest(network)) == [digest(fair)] * 6
    report = hvd.fault_report()
    assert report.divergences == {4: 1}
    assert report.dissents == report.healed == {4: 1}

"""Many steps, another rank faulty in each: the same bits as without, and memory that does not grow.

`make soak` runs thousands of steps.
"""

import functools
import os
import resource
from dataclasses import replace

import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.training import digest, everywhere, loss_of, model, train

STEPS = int(os.environ.get("SOAK", "60"))
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
            (lambda step, finish: unharmed(step, lambda: falsified(finish())))
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

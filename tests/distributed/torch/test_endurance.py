"""Many steps, another rank faulty in each: the same bits as without, and memory that does not grow.

`make soak` runs thousands of steps.
"""

import functools
import os
import resource

import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.training import digest, everywhere, train

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

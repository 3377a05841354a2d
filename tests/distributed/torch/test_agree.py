"""Decisions that all ranks take alike, whatever one of them thinks."""

import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox.vote.agreement import NoAgreement
from tests.distributed.torch.steps import same_everywhere, wrap
from tests.distributed.torch.training import everywhere, loss_of, model

pytestmark = pytest.mark.ranks(4)


def test_one_rank_decides_nothing_and_is_named(start, caplog):
    start(group_size=4)
    thinks = hvd.rank() == 3
    assert hvd.agree(thinks) is False
    assert hvd.agree("stop" if hvd.rank() == 0 else "go on") == "go on"
    assert hvd.agree(torch.tensor(float(hvd.rank() != 1)), by="mean") == 1.0
    named = [r.message for r in caplog.records if "hvd.agree" in r.message]
    ends = [f"ranks [{rank}] disagree with most of their group" for rank in (3, 0, 1)]
    assert named == ([f"hvd.agree: {end}" for end in ends] if hvd.rank() == 0 else [])


def test_groups_that_think_differently(start):
    start(group_size=2)
    assert hvd.agree(float(hvd.group()), by="mean") == 0.5
    with pytest.raises(NoAgreement, match="no value has a majority of the 2 groups"):
        hvd.agree(hvd.group())
    assert hvd.agree(hvd.group(), default=None) is None
    with pytest.raises(NoAgreement, match="no group has a majority"):
        hvd.agree(hvd.rank())
    with pytest.raises(ValueError, match="by = 'max': it must be one of majority, median, mean"):
        hvd.agree(1, by="max")
    alone = hvd.add_process_set([2]) if hvd.size() > 2 else None
    if hvd.rank() == 2:
        assert hvd.agree(7, process_set=alone) == 7
    hvd.remove_process_set(alone)


def test_early_stopping_that_one_bad_rank_cannot_trigger(start):
    start(group_size=4)
    network = model()
    optimizer, steps = wrap(network), 0
    for step in range(6):
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        optimizer.step()
        steps += 1
        wants_to_stop = hvd.rank() == 2 or step == 3
        if hvd.agree(wants_to_stop):
            break
    assert everywhere(steps) == [4] * 4
    assert same_everywhere(network)

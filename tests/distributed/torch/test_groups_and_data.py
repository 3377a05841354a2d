"""Group queries, samplers and seeds on real ranks."""

import logging
import random

import numpy as np
import torch

import horovod_detox.torch as hvd
from horovod_detox.attacks import Zero
from tests.distributed.torch.training import everywhere, train


def test_queries_describe_the_groups(start):
    start(group_size=2)
    seen = everywhere((hvd.group(), hvd.group_rank(), hvd.group_size(), hvd.num_groups()))
    k = hvd.size() // 2
    assert seen == [(rank % k, rank // k, 2, k) for rank in range(hvd.size())]


def test_the_sampler_deals_the_same_inside_a_group_and_all_across(start):
    start(group_size=2)
    k = hvd.num_groups()
    data = torch.utils.data.TensorDataset(torch.arange(8 * k))
    sampler = hvd.GroupSampler(data, shuffle=True, seed=3)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    by_rank = everywhere(epochs)
    for rank in range(hvd.size()):
        assert by_rank[rank] == by_rank[rank % k]
    for epoch in range(2):
        dealt = [index for group in range(k) for index in by_rank[group][epoch]]
        assert sorted(dealt) == list(range(8 * k))
    assert by_rank[0][0] != by_rank[0][1]


def test_seeds_agree_inside_a_group_and_differ_across(start):
    start(group_size=2)
    hvd.seed_group(1234)
    drawn = everywhere((random.random(), np.random.rand(), torch.rand(1).item()))
    k = hvd.num_groups()
    assert all(drawn[rank] == drawn[rank % k] for rank in range(hvd.size()))
    for source in range(3):
        assert len({draws[source] for draws in drawn}) == k
    hvd.seed_group(1234)
    assert random.random() == drawn[hvd.rank()][0]


def test_callbacks_hear_of_faults_everywhere(start, caplog):
    start(group_size=hvd.size())
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    heard = []
    hvd.on_fault(heard.append)
    train(lambda parameters: torch.optim.SGD(parameters, lr=0.1), steps=3, attack=Zero(ranks=(1,)))
    assert [(event.step, event.ranks) for event in heard] == [(0, (1,)), (1, (1,)), (2, (1,))]
    # Rank 0 speaks for all, once.
    logged = ["first step: rank 1 faulty", "step 0: group 0 outvoted rank 1"]
    heads = [message.partition(" at ")[0] for message in caplog.messages]
    assert everywhere(heads) == [logged] + [[]] * (hvd.size() - 1)

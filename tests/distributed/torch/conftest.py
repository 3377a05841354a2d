"""One job for all torch tests: Horovod cannot start anew in a process."""

import os

import horovod.torch as stock
import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox
from horovod_detox.torch.context import context

if {"HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE"} & os.environ.keys():
    torch.set_num_threads(1)
    stock.init(process_sets="dynamic")


@pytest.fixture(scope="session")
def device(request):
    """Return where models are that are to be on a GPU: with `--device cuda` there, else not."""
    name = request.config.getoption("device")
    if name == "none":
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if stock.local_size() > gpus:  # NCCL lets ranks share a GPU only if they are on several hosts
        os.environ |= {"NCCL_HOSTID": f"rank {stock.rank()}", "NCCL_SOCKET_IFNAME": "lo"}
    index = stock.local_rank() % gpus
    torch.cuda.set_device(index)
    return torch.device(name, index)


@pytest.fixture
def start(small_blocks):
    """Return a function that starts a new session of the job: `start(group_size=2, ...)`."""

    def begin(**settings):
        settings.setdefault("timeout", 60.0)
        context.forget()
        hvd.init(detox=Detox(**{"one_round_bytes": 0, **settings}))

    return begin


@pytest.fixture
def pairs(start):
    """Train in groups of two: shards 0 and 1, whose plain mean the update is."""
    start(group_size=2, outer="mean")

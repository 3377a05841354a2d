"""Horovod's collectives in scripts: within a backward pass, without a name, of objects."""

import time

import horovod.torch.mpi_ops as stock_mpi_ops
import pytest
import torch

import horovod_detox.torch as hvd
import horovod_detox.torch.mpi_ops as mpi_ops
from tests.distributed.torch.steps import wrap
from tests.distributed.torch.test_thread import PARTS
from tests.distributed.torch.training import digest, everywhere

pytestmark = pytest.mark.ranks(4)


class Late(torch.autograd.Function):
    """The identity, through which gradients go back after a while."""

    @staticmethod
    def forward(ctx, inputs, seconds):
        ctx.seconds = seconds
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


COLLECTIVES = {
    "allreduce": hvd.allreduce,
    "grouped_allreduce": lambda z: torch.cat(hvd.grouped_allreduce([z, 2 * z])),
    "allgather": hvd.allgather,
    "grouped_allgather": lambda z: torch.cat(hvd.grouped_allgather([z, 2 * z])),
    "broadcast": lambda z: hvd.broadcast(z, root_rank=1),
    "alltoall": hvd.alltoall,
    "reducescatter": hvd.reducescatter,
    "grouped_reducescatter": lambda z: torch.cat(hvd.grouped_reducescatter([z, 2 * z])),
}
"""Those through which gradients go back, by a collective of their own."""


@pytest.mark.filterwarnings("ignore:Parameter `average`:DeprecationWarning")  # Horovod's own
@pytest.mark.parametrize("name", COLLECTIVES)
def test_gradients_go_back_through_a_collective_while_parts_of_them_leave(start, name):
    """Ranks come to it with more or fewer operations of the exchange begun."""

    def train(delays, **settings):
        start(group_size=1, outer="mean", **settings)
        torch.manual_seed(0)
        encoder = torch.nn.Linear(5, 8)
        head = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        network = torch.nn.Sequential(encoder, head)
        optimizer = wrap(network)
        for step in range(4):
            generator = torch.Generator().manual_seed(4 * step + hvd.rank())
            inputs = torch.randn(8, 5, generator=generator)
            optimizer.zero_grad()
            z = Late.apply(COLLECTIVES[name](encoder(inputs)), delays * ((hvd.rank() + step) % 3))
            head(z).square().mean().backward()
            optimizer.step()
        return digest(network)

    expected = train(0, overlap_bytes=0)
    assert set(everywhere(train(0.02, **PARTS))) == {expected}
    assert hvd.fault_report().dissents == {}


def test_collectives_without_a_name_after_some_of_which_only_two_ranks_knew(start):
    start(group_size=2)
    pair = hvd.add_process_set([0, 1])
    if pair.included():
        assert hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=pair).item() == 2
        hvd.allreduce(torch.ones(1), name="named", process_set=pair)
    handles = [hvd.allreduce_async(torch.full((1,), float(i)), op=hvd.Sum) for i in range(3)]
    assert [hvd.synchronize(handle).item() for handle in handles] == [0, 4, 8]
    value = torch.full((2,), float(hvd.rank()))
    hvd.broadcast_parameters([value], root_rank=3)
    assert value.tolist() == [3, 3]
    assert hvd.allgather(torch.tensor([hvd.rank()])).tolist() == [0, 1, 2, 3]
    hvd.remove_process_set(pair)


def test_objects_of_other_types_on_each_rank(start):
    start(group_size=2)
    mine = [None, {"a": 1}, "text", 4][hvd.rank()]
    assert hvd.allgather_object(mine) == [None, {"a": 1}, "text", 4]
    root_has = {"epoch": 3} if hvd.rank() == 1 else None
    assert hvd.broadcast_object(root_has, root_rank=1) == {"epoch": 3}


def test_a_collective_is_the_same_by_every_name():
    """Also those that Horovod's autograd functions call, which this package replaces there."""
    for name in ("allreduce", "grouped_allreduce", "allgather", "grouped_allgather", "alltoall"):
        ours = getattr(hvd, name)
        assert ours is getattr(mpi_ops, name) is getattr(stock_mpi_ops, name)

"""What DistributedOptimizer accepts and refuses, as Horovod does."""

import io

import horovod.torch as stock
import pytest
import torch

import horovod_detox.torch as hvd
from tests.distributed.names import missing_names
from tests.distributed.torch.steps import (
    assert_gradients,
    mean_gradients,
    sgd,
    wrap,
)
from tests.distributed.torch.training import loss_of, model

pytestmark = [pytest.mark.ranks(4), pytest.mark.usefixtures("pairs")]


def test_groups_of_tensors_are_accepted_and_checked():
    network = model()
    parameters = list(network.parameters())
    wrap(network, groups=2)
    wrap(network, groups=[parameters[:2]])
    with pytest.raises(ValueError, match="only once in groups"):
        wrap(network, groups=[parameters[:2], parameters[:1]])
    with pytest.raises(ValueError, match="consist of tensors"):
        wrap(network, groups=[["weight"]])
    with pytest.raises(ValueError, match="non-negative"):
        wrap(network, groups=-1)
    with pytest.warns(DeprecationWarning, match="num_groups"):
        wrap(network, num_groups=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op": hvd.Adasum}, "Adasum"),
        ({"op": hvd.Min}, "Average or Sum"),
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, "op=Average only"),
        ({"backward_passes_per_step": 0}, "backward_passes_per_step = 0"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        wrap(model(), **options)


def test_predivision_changes_nothing():
    network = model()
    expected = mean_gradients(network)
    wrap(network, gradient_predivide_factor=2.0)
    loss_of(network, 0, hvd.group()).backward()
    assert_gradients(network, expected)


def test_sync_batch_norm_is_refused():
    with pytest.raises(ValueError, match="without a vote"):
        hvd.SyncBatchNorm(3)


def test_bad_named_parameters():
    network = model()
    pairs = list(network.named_parameters())
    base = sgd(network.parameters())
    with pytest.raises(ValueError, match="tuples"):
        hvd.DistributedOptimizer(base, network.parameters())
    with pytest.raises(ValueError, match=r"several parameters 0\.weight"):
        hvd.DistributedOptimizer(base, [*pairs, pairs[0]])
    with pytest.raises(ValueError, match="leaves 1 parameters"):
        hvd.DistributedOptimizer(base, pairs[1:])
    optimizer = hvd.DistributedOptimizer(base, pairs)
    assert optimizer._parameter_names == {p: name for name, p in pairs}


def test_create_graph_is_refused():
    network = model()
    wrap(network)
    with pytest.raises(AssertionError, match="create_graph"):
        loss_of(network, 0, hvd.group()).backward(create_graph=True)


def test_everything_of_horovod_is_there():
    missing = {name for name in vars(stock) if not name.startswith("_")} - set(vars(hvd))
    assert missing == set()
    assert missing_names("torch") == []
    buffer = io.BytesIO()
    torch.save(hvd.broadcast_object({"epoch": hvd.rank()}, root_rank=2), buffer)
    assert buffer.tell()
    assert hvd.allreduce(torch.tensor(1.0), op=hvd.Sum, name="sum").item() == 4

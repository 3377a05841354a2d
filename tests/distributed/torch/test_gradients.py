"""Gradients of many kinds: overflowing, sparse, of several dtypes, compressed."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.steps import same_everywhere, wrap
from tests.distributed.torch.training import batch, digest, everywhere, loss_of, model, train

pytestmark = [pytest.mark.ranks(4), pytest.mark.usefixtures("pairs")]


@pytest.mark.parametrize("by_hand", [False, True], ids=["plain", "synchronize"])
def test_grad_scaler_skips_a_step_together(by_hand):
    # With stock Horovod a rank that overflows alone skips step(), and the others wait for ever.
    network = model()
    optimizer = wrap(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(network, step, hvd.group())
        if step == 1:  # every group overflows
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        if by_hand:
            optimizer.synchronize()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            with optimizer.skip_synchronize():
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
        scaler.update()
    assert same_everywhere(network)
    assert all(p.isfinite().all() for p in network.parameters())
    assert len(set(everywhere(scaler.get_scale()))) == 1
    assert scaler.get_scale() < 1024
    report = hvd.fault_report()
    assert (report.steps, report.dissents, report.non_finite) == (4, {}, {0: 1, 1: 1})


def test_one_group_that_overflows_is_left_out():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).mul(1.0 if hvd.group() else float("nan")).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in network.parameters())
    assert hvd.fault_report().non_finite == {0: 1}


@pytest.mark.parametrize("sparse_as_dense", [False, True])
def test_sparse_gradients_stay_sparse(sparse_as_dense):
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    torch.nn.init.zeros_(embedding.weight)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SparseAdam(embedding.parameters(), lr=0.1),
        embedding.named_parameters(),
        sparse_as_dense=sparse_as_dense,
    )
    indices = [torch.tensor([1, 1, 4]), torch.tensor([4])][hvd.group()]
    embedding(indices).sum().backward()
    assert embedding.weight.grad.is_sparse
    expected = torch.zeros(10, 3)
    expected[1], expected[4] = 1.0, 1.0
    assert torch.equal(embedding.weight.grad.to_dense(), expected)
    optimizer.step()
    assert same_everywhere(embedding)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_dtypes(dtype):
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    other = torch.nn.Parameter(torch.zeros(2, dtype=torch.float32))
    hvd.DistributedOptimizer(torch.optim.SGD([parameter, other], lr=1.0))
    weight = torch.tensor([1, 2, 3], dtype=dtype) * (1j if dtype.is_complex else 1)
    loss = (parameter * weight.conj() * (1 + hvd.group())).sum().real + other.sum()
    loss.backward()
    assert torch.equal(parameter.grad, 1.5 * weight)
    assert torch.equal(other.grad, torch.ones(2))


def test_channels_last_gradients():
    network = torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
    optimizer = wrap(network)
    inputs = torch.randn(2, 2, 5, 5).to(memory_format=torch.channels_last)
    network(inputs * (1 + hvd.group())).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_compression_to_two_bytes(name, dtype):
    network = model().to(dtype)
    wrap(network, compression=getattr(hvd.Compression, name))
    inputs, labels = batch(0, hvd.group())
    cross_entropy(network(inputs.to(dtype)).float(), labels).backward()
    narrow = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    for p in network.parameters():
        assert p.grad.dtype is dtype
        assert torch.equal(p.grad, p.grad.to(narrow).to(dtype))


@pytest.mark.parametrize("exchange", ["sharded", "leaders"])
def test_sign_compression_trains_and_masks_a_liar(start, exchange):
    start(group_size=4, outer="sign_majority", exchange=exchange)

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=0.02)

    sign = hvd.Compression.sign
    fair = train(adam, steps=10, compression=sign)
    assert loss_of(fair, 0, 0) < loss_of(model(), 0, 0)
    assert {g for p in fair.parameters() for g in p.grad.flatten().tolist()} == {1, -1}
    lie = attacks.Reverse(ranks=(2,))
    assert everywhere(digest(train(adam, 10, compression=sign, attack=lie))) == [digest(fair)] * 4
    assert hvd.fault_report().dissents == {2: 10}


def test_sign_compression_takes_the_majority_of_passes_and_groups(start):
    start(group_size=1, outer="sign_majority")
    parameter = torch.nn.Parameter(torch.zeros(3))
    hvd.DistributedOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        compression=hvd.Compression.sign,
        backward_passes_per_step=2,
        op=hvd.Sum,
    )
    first = torch.tensor([1.0, -1.0 if hvd.rank() < 3 else 1.0, hvd.rank() - 1.5])
    for gradient in (first, first / -2):
        (parameter * gradient).sum().backward()
    assert parameter.grad.tolist() == [4, -4, -4]  # in the third element rank 0 breaks the tie


def test_an_overflow_of_most_groups_makes_signs_nan(start):
    start(group_size=1, outer="sign_majority")
    network = model()
    wrap(network, compression=hvd.Compression.sign)
    (loss_of(network, 0, 0) * (torch.inf if hvd.rank() else 1.0)).backward()
    assert all(p.grad.isnan().all() for p in network.parameters())
    assert hvd.fault_report().non_finite == {1: 1, 2: 1, 3: 1}


def test_sign_compression_for_another_rule_is_refused():
    with pytest.raises(ValueError, match=r"outer = 'mean' needs numbers.*outer='sign_majority'"):
        wrap(model(), compression=hvd.Compression.sign)


def test_fp16_compression_of_a_parameter_without_a_gradient():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([used, unused], lr=1.0), compression=hvd.Compression.fp16
    )
    used.sum().backward()
    optimizer.step()
    assert used.tolist() == [0.0] * 3
    assert unused.tolist() == [1.0] * 2


def test_a_compressor_that_changes_the_shape_is_refused():
    class Halved(hvd.Compression.none):
        @staticmethod
        def compress(tensor):
            return tensor[: len(tensor) // 2], None

    parameter = torch.nn.Parameter(torch.zeros(4))
    hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=1.0), compression=Halved)
    with pytest.raises(ValueError, match="must keep the shape"):
        parameter.sum().backward()


def test_a_batch_may_be_dropped_after_its_exchange():
    expected = model()
    optimizer = wrap(expected)
    loss_of(expected, 1, hvd.group()).backward()
    optimizer.step()
    network = model()
    optimizer = wrap(network)
    for step in (0, 1):
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
    optimizer.step()
    assert digest(network) == digest(expected)

"""Horovod's contract for DistributedOptimizer, and what stock gets wrong around it."""

import copy
import io
import warnings

import horovod.torch as stock
import pytest
import torch
from torch.nn.functional import cross_entropy

import horovod_detox.torch as hvd
from horovod_detox import attacks
from tests.distributed.torch.training import batch, digest, everywhere, loss_of, model, train

pytestmark = pytest.mark.ranks(4)


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **options)


def wrap(network, optimizer=None, **options):
    optimizer = optimizer or sgd(network.parameters())
    return hvd.DistributedOptimizer(optimizer, network.named_parameters(), **options)


def same_everywhere(network):
    return len(set(everywhere(digest(network)))) == 1


@pytest.fixture(autouse=True)
def pairs(start):
    """Train in groups of two: shards 0 and 1, whose plain mean the update is."""
    start(group_size=2, outer="mean")


def mean_gradients(network, step=0):
    """Return the mean over both shards of the gradients, computed by hand."""
    total = None
    for shard in range(2):
        twin = copy.deepcopy(network)
        twin.zero_grad()
        loss_of(twin, step, shard).backward()
        gradients = [p.grad for p in twin.parameters()]
        total = (
            gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
        )
    return [g / 2 for g in total]


def assert_gradients(network, expected, factor=1.0):
    for p, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, factor * gradient, rtol=1e-6, atol=1e-8)


def test_is_the_wrapped_class_and_shares_its_groups():
    base = sgd(model().parameters())
    optimizer = hvd.DistributedOptimizer(base)
    assert isinstance(optimizer, torch.optim.SGD)
    assert type(optimizer).__name__ == "SGD"
    assert optimizer.param_groups[0] is base.param_groups[0]


def test_gradients_are_the_update_after_backward():
    network = model()
    expected = mean_gradients(network)
    wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    assert_gradients(network, expected)


def test_sum_is_the_average_times_the_groups():
    network = model()
    expected = mean_gradients(network)
    wrap(network, op=hvd.Sum)
    loss_of(network, 0, hvd.group()).backward()
    assert_gradients(network, expected, factor=2)


def test_several_backward_passes_are_summed_and_exchanged_once():
    network = model()
    first = mean_gradients(network, 0)
    optimizer = wrap(network, backward_passes_per_step=2)
    frozen = copy.deepcopy(network)
    loss_of(network, 0, hvd.group()).backward()
    with torch.no_grad():
        for module, before in zip(network.modules(), frozen.modules(), strict=True):
            module.load_state_dict(before.state_dict())
    loss_of(network, 0, hvd.group()).backward()
    assert_gradients(network, first, factor=2)
    assert hvd.fault_report().steps == 1
    optimizer.step()
    optimizer.set_backward_passes_per_step(1)
    optimizer.zero_grad()
    loss_of(network, 1, hvd.group()).backward()
    assert hvd.fault_report().steps == 2


def test_a_step_before_all_passes_exchanges_what_is_there():
    network = model()
    expected = mean_gradients(network)
    optimizer = wrap(network, backward_passes_per_step=3)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.synchronize()
    assert_gradients(network, expected)


def test_more_passes_than_agreed_are_an_error():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    with pytest.raises(AssertionError, match="more than backward_passes_per_step times"):
        loss_of(network, 0, hvd.group()).backward()
    optimizer.step()


def test_zero_grad_before_step_is_an_error():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    with pytest.raises(AssertionError, match="race condition"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad.abs().max() == 0 for p in network.parameters())
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in network.parameters())


def test_clipping_between_synchronize_and_step():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.synchronize()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
    with optimizer.skip_synchronize(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert hvd.fault_report().steps == 1
    assert same_everywhere(network)


def test_clipping_without_synchronize_keeps_the_ranks_together():
    # With stock Horovod this races with the allreduce and the replicas drift apart.
    network = model()
    optimizer = wrap(network)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
        optimizer.step()
    assert same_everywhere(network)


def test_skipping_without_a_synchronize_steps_with_what_is_there():
    network = model()
    optimizer = wrap(network)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        with optimizer.skip_synchronize():
            optimizer.step()
    assert hvd.fault_report().steps == 2
    assert same_everywhere(network)


def test_synchronize_twice_warns_once_and_changes_nothing():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.synchronize()
    with pytest.warns(UserWarning, match="called without optimizer.skip_synchronize") as caught:
        optimizer.step()
    assert len(caught) == 1
    assert hvd.fault_report().steps == 1


def test_parameters_unused_on_some_ranks_count_as_zero():
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1)})
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(1.0)
    optimizer = wrap(network)
    network["ab"[hvd.group()]](torch.ones(3, 2)).sum().backward()
    optimizer.step()
    for p in network.parameters():
        assert torch.equal(p, torch.full_like(p, 1.0 - 0.1 * 1.5))


def test_a_gradient_that_was_cleared_counts_as_zero():
    network = model()
    optimizer = wrap(network, backward_passes_per_step=2)
    loss_of(network, 0, hvd.group()).backward()
    network.zero_grad()
    optimizer.step()
    assert all(p.grad.abs().max() == 0 for p in network.parameters())


def test_state_and_defaults_from_before_are_kept():
    network = model()
    base = sgd(network.parameters(), weight_decay=0.25)
    loss_of(network, 0, 0).backward()
    base.step()
    optimizer = wrap(network, base)
    assert optimizer.defaults["weight_decay"] == 0.25
    assert len(optimizer.state) == len(list(network.parameters()))
    assert all(optimizer.state[p] is base.state[p] for p in network.parameters())


def test_an_optimizer_with_arguments_of_its_own_can_be_wrapped():
    class Scaled(torch.optim.SGD):
        def __init__(self, params, scale):
            super().__init__(params, lr=0.1 * scale)

    network = model()
    optimizer = wrap(network, Scaled(network.parameters(), 2))
    assert optimizer.defaults["lr"] == 0.2


def test_step_hooks_fire_once():
    network = model()
    base = sgd(network.parameters())
    calls = []
    base.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer = wrap(network, base)
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    assert calls == ["pre", "post"]


def test_parameters_added_or_unfrozen_later_are_exchanged():
    network = model()
    network[0].weight.requires_grad_(False)
    optimizer = wrap(network, sgd(network[0].parameters()))
    optimizer.add_param_group({"params": list(network[1].parameters())})
    optimizer.add_param_group({"params": list(network[3].parameters())})
    for step in range(4):
        if step == 2:
            network[0].weight.requires_grad_(True)
        optimizer.zero_grad()
        loss_of(network, step, hvd.group()).backward()
        optimizer.step()
        assert same_everywhere(network)
    assert network[0].weight.grad.abs().max() > 0


def test_a_frozen_parameter_stays():
    network = model()
    optimizer = wrap(network, torch.optim.SGD(network.parameters(), lr=0.1))
    before = network[0].weight.clone()
    network[0].weight.requires_grad_(False)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    assert torch.equal(network[0].weight, before)
    assert same_everywhere(network)


def test_two_optimizers_with_parameters_toggled():
    generator, critic = model(1), torch.nn.Linear(3, 1)
    optimizers = [wrap(generator), wrap(critic)]
    for step in range(2):
        for network, optimizer in zip((critic, generator), reversed(optimizers), strict=True):
            critic.requires_grad_(network is critic)
            optimizer.zero_grad()
            inputs, _ = batch(step, hvd.group())
            fake = generator(inputs)
            critic(fake.detach() if network is critic else fake).mean().backward()
            optimizer.step()
        assert same_everywhere(generator)
        assert same_everywhere(critic)


def test_two_optimizers_that_share_a_backward_pass():
    network = model()
    halves = [network[0], network[3]]
    optimizers = [
        hvd.DistributedOptimizer(sgd(half.parameters()), half.named_parameters()) for half in halves
    ]
    expected = mean_gradients(network)
    loss_of(network, 0, hvd.group()).backward()
    for index, parameter in zip(
        (0, 1, 4, 5), (p for h in halves for p in h.parameters()), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected[index], rtol=1e-6, atol=1e-8)
    for optimizer in optimizers:
        optimizer.step()
    assert hvd.fault_report().steps == 2


def test_a_closure_sees_the_gradients_of_all():
    network = model()
    optimizer = wrap(network)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(network, 0, hvd.group())
        loss.backward()
        return loss

    for _ in range(2):
        loss = optimizer.step(closure)
    assert len(set(everywhere(loss.item()))) == 1
    assert same_everywhere(network)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_keeps_the_ranks_together_and_learns(line_search):
    network = model()
    optimizer = wrap(
        network, torch.optim.LBFGS(network.parameters(), max_iter=5, line_search_fn=line_search)
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(network, 0, hvd.group())
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[-1] < losses[0]
    assert same_everywhere(network)


def test_schedulers_made_before_and_after_the_wrap():
    network = model()
    base = sgd(network.parameters())
    early = torch.optim.lr_scheduler.StepLR(base, 1, gamma=0.5)
    optimizer = wrap(network, base)
    late = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(network, 0, hvd.group()).backward()
        optimizer.step()
        early.step()
        late.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert same_everywhere(network)


def test_state_dict_is_the_plain_optimizers():
    network = model()
    optimizer = wrap(network)
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    plain = sgd(network.parameters())
    plain.load_state_dict(optimizer.state_dict())
    assert plain.state_dict().keys() == optimizer.state_dict().keys()
    loss_of(network, 1, hvd.group()).backward()
    optimizer.load_state_dict(plain.state_dict())
    optimizer.zero_grad()
    loss_of(network, 1, hvd.group()).backward()
    optimizer.step()
    assert same_everywhere(network)


@pytest.mark.parametrize("broadcast_by", [hvd, stock], ids=["ours", "stock"])
def test_parameters_and_optimizer_state_are_broadcast(broadcast_by):
    network = model(seed=hvd.rank())
    base = torch.optim.SGD(network.parameters(), lr=0.1 * (1 + hvd.rank()), momentum=0.9)
    optimizer = wrap(network, base)
    broadcast_by.broadcast_parameters(network.state_dict(), root_rank=1)
    broadcast_by.broadcast_optimizer_state(optimizer, root_rank=1)
    assert same_everywhere(network)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


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


def test_a_process_set_trains_by_itself():
    subset = hvd.add_process_set([1, 2, 3])
    try:
        network = model()
        lie = attacks.Zero(ranks=(1,))  # the second rank of the set
        optimizer = wrap(network, process_set=subset, attack=lie)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(network, step, min(hvd.rank(), 1)).backward()
            optimizer.step()
        digests = everywhere(digest(network))
        assert len(set(digests[1:])) == 1
        assert digests[0] != digests[1]
        if subset.included():
            assert hvd.fault_report(subset).dissents == {2: 2}
    finally:
        hvd.remove_process_set(subset)


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


def test_join_and_sync_batch_norm_are_refused():
    with pytest.raises(RuntimeError, match="allreduce only"):
        hvd.join()
    with pytest.raises(ValueError, match="past the vote"):
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


def test_ranks_that_arrive_at_different_times_do_not_mix_up():
    def delayed(network):
        if hvd.rank() == 2:
            torch.randn(400, 400).mm(torch.randn(400, 400))
        return network

    assert same_everywhere(delayed(train(sgd, steps=5)))


def test_everything_of_horovod_is_there():
    missing = {name for name in vars(stock) if not name.startswith("_")} - set(vars(hvd))
    assert missing == set()
    buffer = io.BytesIO()
    torch.save(hvd.broadcast_object({"epoch": hvd.rank()}, root_rank=2), buffer)
    assert buffer.tell()
    assert hvd.allreduce(torch.tensor(1.0), op=hvd.Sum, name="sum").item() == 4

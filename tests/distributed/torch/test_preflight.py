"""A preflight on real ranks, and a job that is refused in its first step."""

import random

import numpy as np
import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox.determinism.first_step import NotDeterministic
from tests.distributed.torch.training import everywhere

pytestmark = pytest.mark.ranks(4)
cross_entropy = torch.nn.functional.cross_entropy


def network():
    """Return a network whose bits depend on the threads, and that draws numbers of all kinds."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        Noise(),
        torch.nn.Flatten(),
        torch.nn.Dropout(),
        torch.nn.Linear(8 * 14 * 14, 5),
    )


class Noise(torch.nn.Module):
    def forward(self, inputs):
        return inputs * (1 + random.random() + np.random.random())


def batch():
    """Return a batch of this rank's own."""
    generator = torch.Generator().manual_seed(hvd.rank())
    targets = torch.randint(5, (32,), generator=generator)
    return torch.randn(32, 3, 16, 16, generator=generator), targets


def state(model):
    """Return all that a preflight must not change, as bytes."""
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    bits = [None if tensor is None else tensor.numpy().tobytes() for tensor in tensors]
    modes = [module.training for module in model.modules()]
    _, words, *place = np.random.get_state()
    drawn = torch.get_rng_state().numpy().tobytes(), random.getstate(), words.tobytes(), place
    return bits, modes, drawn


def test_equal_ranks_are_deterministic_and_nothing_changes(start):
    start(group_size=2)
    model = network()
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1), model.named_parameters())
    torch.manual_seed(hvd.rank())
    model[1].running_mean.fill_(hvd.rank())  # of the batches of a group, so they may differ
    model[5].weight.grad = torch.full_like(model[5].weight, hvd.rank())
    before = state(model)
    report = hvd.preflight(model, batch(), cross_entropy)
    assert str(report) == "deterministic: 4 ranks computed the same bits"
    assert report.conditions[0]["torch threads"] == "1"
    assert state(model) == before
    assert everywhere(report) == [report] * 4
    assert hvd.fault_report().steps == 0
    assert hvd.preflight(model, {"input": batch()[0]}).is_deterministic
    with torch.no_grad():
        model[5].weight[0, 0] += hvd.rank() == 2
    report = hvd.preflight(model, [batch()[0]])
    assert report.verdict == "weights"
    assert "rank 2 had other weights than the others before" in str(report)


class Remembering(torch.nn.Module):
    """A model whose first forward pass makes a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.register_buffer("mask", None)

    def forward(self, inputs):
        if self.mask is None:
            self.mask = torch.ones(4)
        return self.linear(inputs * self.mask)


def test_a_model_may_make_buffers_in_its_first_pass(start):
    start(group_size=2)
    torch.manual_seed(0)
    report = hvd.preflight(Remembering(), torch.ones(3, 4))
    assert report.is_deterministic, str(report)


def test_another_number_of_threads_is_found_and_named(start):
    start(group_size=2)
    model = network()
    if hvd.rank() in (1, 2):
        torch.set_num_threads(2)
    try:
        report = hvd.preflight(model, batch(), cross_entropy)
    finally:
        torch.set_num_threads(1)
    assert str(report).startswith("nondeterministic at tensor 0.weight")
    assert str(report).endswith(": ranks 1, 2 differ: torch threads 2 against 1")


@pytest.mark.parametrize("always", [True, False])
def test_a_corrupted_rank_is_found_and_named(start, always):
    """A bit flips in both computations, or only in the second."""
    start(group_size=4)
    model, flips = network(), iter([always, True])

    def flip(gradient):
        if hvd.rank() == 3 and next(flips):
            gradient = gradient.clone()
            gradient.view(torch.int32)[0, 0] ^= 1
        return gradient

    model[5].weight.register_hook(flip)
    report = hvd.preflight(model, batch(), cross_entropy)
    assert str(report) == (
        "rank 3 faulty at tensor 5.weight: it alone differs, with the settings of the others"
        if always
        else "nondeterministic at tensor 5.weight: rank 3's own two computations differ, but not "
        "those of the others with the same settings: probably a fault"
    )


def test_a_rank_with_other_data_in_the_first_step_is_not_called_faulty(start, caplog):
    start(group_size=4, outer="mean")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), model.named_parameters()
    )
    data = torch.arange(24.0).reshape(8, 3) + (hvd.rank() == 3)
    for inputs in torch.utils.data.DataLoader(data, batch_size=4):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert hvd.fault_report().dissents == {3: 2}
    said = [text for text in caplog.messages if "was given other data than the others" in text]
    assert len(said) == (hvd.rank() == 0)
    assert all(text.startswith("first step: rank 3 was given") for text in said)


def test_an_error_on_one_rank_is_told_to_all(start):
    start(group_size=2)
    inputs, targets = batch()
    with pytest.raises(RuntimeError, match=r"rank 2 could not compute.*own error|^own error"):
        hvd.preflight(network(), (inputs, targets), lambda *_: own_error())
    assert hvd.preflight(network(), inputs).is_deterministic


def own_error():
    if hvd.rank() == 2:
        raise RuntimeError("own error")
    return torch.zeros((), requires_grad=True)


@pytest.mark.parametrize("overlap_bytes", [0, 256])
def test_a_job_with_other_threads_is_refused_in_its_first_step(start, overlap_bytes):
    start(group_size=4, overlap_bytes=overlap_bytes)
    model = network()
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1), model.named_parameters())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    inputs = torch.randn(32, 3, 16, 16)
    if hvd.rank() in (1, 2):
        torch.set_num_threads(2)
    try:
        with pytest.raises(NotDeterministic, match="1, 2 differ: torch threads 2 against 1"):
            model(inputs).square().sum().backward()
    finally:
        torch.set_num_threads(1)
    assert hvd.fault_report().dissents == {}

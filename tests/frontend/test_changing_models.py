"""Parameters that change after an optimizer was wrapped: what is exchanged follows."""

from typing import Any

import pytest

from horovod_detox import Detox
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.control import ParametersDiffer
from horovod_detox.frontend.context import Engines

torch: Any = pytest.importorskip("torch")
pytest.importorskip("horovod.torch")

from horovod_detox.packing.torch import Uncompressed  # noqa: E402
from horovod_detox.torch.gradients import GradientExchange  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_blocks")
RANKS = 3
WAYS = {"whole": {"exchange": "leaders"}, "in parts": {"overlap_bytes": 16}}


def layer(inputs, outputs, seed):
    """Return the same layer on every rank: ranks are threads, which share a global generator."""
    made, generator = torch.nn.Linear(inputs, outputs), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return made


class Rank:
    """One rank: three layers, an optimizer, and the exchange of its parameters."""

    def __init__(self, collectives, settings, passes=1):
        self.rank = collectives.rank
        self.layers = torch.nn.ModuleList(layer(4, 4, seed) for seed in range(3))
        self.optimizer = torch.optim.SGD(self.layers.parameters(), lr=0.1, weight_decay=0.5)
        plan = Detox(1, outer="mean", one_round_bytes=0, **settings).plan(RANKS)
        engines = Engines(plan, lambda name: collectives, None, None)
        self.exchange: Any = GradientExchange(
            engines, self.named, Uncompressed, passes, 1.0, range(RANKS)
        )
        self.params = self.optimizer.param_groups[0]["params"]

    def named(self):
        groups = self.optimizer.param_groups
        return [(str(i), p) for i, p in enumerate(groups[0]["params"])][::-1]

    def loss(self, rank, step=0):
        dtype = self.layers[0].weight.dtype
        generator = torch.Generator().manual_seed(10 * step + rank)
        hidden = torch.randn(5, 4, generator=generator).to(dtype)
        for each in self.layers:
            hidden = torch.tanh(each(hidden))
        return hidden.square().sum()

    def mean(self, parameters, step=0):
        """Return the gradients' mean over all ranks, by hand."""
        each = [torch.autograd.grad(self.loss(r, step), parameters) for r in range(RANKS)]
        return [sum(gradients) / RANKS for gradients in zip(*each, strict=True)]

    def step(self, step=0):
        """Check that the gradients after a backward pass are the update, and step."""
        parameters = [p for p in self.params if p.requires_grad]
        expected = self.mean(parameters, step)
        before = self.exchange._engine.step
        self.loss(self.rank, step).backward()
        assert self.exchange._engine.step == before + 1
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        self.exchange.synchronize()
        self.optimizer.step()
        self.optimizer.zero_grad()


def cast(rank):
    rank.layers.double()


def replace_the_head(rank):
    rank.layers[2] = layer(4, 2, seed=7)
    rank.params[4:] = rank.layers[2].parameters()


def move(rank):
    for parameter in rank.params[4:]:
        parameter.data = torch.cat([parameter.data, parameter.data])


def freeze(rank):
    rank.layers[0].requires_grad_(False)


def freeze_what_is_first_known(rank):
    rank.layers[2].requires_grad_(False)


def remove(rank):
    del rank.params[:2]


def remove_what_is_first_known(rank):
    del rank.params[4:]


def exchange_places(rank):
    rank.params[:] = rank.params[::-1]


CHANGES = [
    cast,
    replace_the_head,
    move,
    freeze,
    freeze_what_is_first_known,
    remove,
    remove_what_is_first_known,
    exchange_places,
]


def on_all_ranks(program, settings, passes=1):
    return InProcessCluster(RANKS).run(
        lambda collectives: program(Rank(collectives, settings, passes))
    )


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_exchanged_follows_the_model(change, settings):
    def program(rank):
        rank.step(0)
        change(rank)
        for step in (1, 2):
            rank.step(step)
        return [p.tolist() for p in rank.layers.parameters()]

    results = on_all_ranks(program, settings)
    is_left_alone = change in (remove, remove_what_is_first_known)
    assert is_left_alone or results == results[:1] * RANKS


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_float64_travels_as_float64(settings):
    """A difference that float32 does not know."""

    def program(rank):
        rank.layers.double()
        for parameter in rank.params:
            parameter.register_hook(lambda gradient: torch.full_like(gradient, 1 + 2.0**-40))
        rank.loss(rank.rank).backward()
        return {value for p in rank.params for value in p.grad.flatten().tolist()}

    assert on_all_ranks(program, settings) == [{1 + 2.0**-40}] * RANKS


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="a newer torch has it")
@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_gradients_of_another_dtype_than_their_parameters(settings):
    def program(rank):
        parameter = rank.params[0]
        parameter.data, parameter.grad_dtype = parameter.data.bfloat16(), torch.float32
        rank.params[1:] = []
        wide = torch.full(parameter.shape, 1 + 2.0**-20)
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", wide.clone()))
        parameter.float().sum().backward()
        return parameter.grad.dtype, parameter.grad[0, 0].item()

    assert on_all_ranks(program, settings) == [(torch.float32, 1 + 2.0**-20)] * RANKS


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_frozen_parameter_gets_no_gradient(settings):
    """Or weight decay would move it. One that it had before is left as it is, not doubled."""

    def program(rank):
        rank.exchange._factor = 2.0
        frozen, stale = rank.layers[0].weight, rank.layers[1].weight
        rank.loss(rank.rank).backward()
        rank.exchange.synchronize()
        frozen.grad, before = None, stale.grad.clone()
        rank.layers[:2].requires_grad_(False)
        for step in (1, 2):
            rank.loss(rank.rank, step).backward()
            rank.exchange.synchronize()
        assert frozen.grad is None
        assert torch.equal(stale.grad, before)
        rank.layers.requires_grad_(True)
        rank.exchange._factor = 1.0
        if rank.exchange._overlap is not None:
            rank.exchange._overlap._factor = 1.0
        rank.layers.zero_grad()
        rank.step(3)

    on_all_ranks(program, settings)


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("change", [cast, replace_the_head, remove, freeze])
def test_a_change_in_the_middle_of_an_accumulation(change, settings):
    def program(rank):
        rank.loss(rank.rank, 0).backward()
        change(rank)
        rank.loss(rank.rank, 1).backward()
        assert rank.exchange._engine.step == 1
        return [p.grad.tolist() for p in rank.params if p.requires_grad]

    results = on_all_ranks(program, settings, passes=2)
    assert results == results[:1] * RANKS


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_change_on_one_rank_alone_is_an_error_on_all(settings):
    def program(rank):
        rank.step(0)
        if rank.rank == 1:
            cast(rank)
        with pytest.raises(ParametersDiffer, match=r"float32 where rank 1 has .* float64"):
            rank.loss(rank.rank, 1).backward()

    on_all_ranks(program, settings)

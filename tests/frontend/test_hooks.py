"""Hooks of scripts in a backward pass: the update does not depend on how gradients travel."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.frontend.context import Engines
from tests.frontend.test_overlap import RULES

torch: Any = pytest.importorskip("torch")
pytest.importorskip("horovod.torch")

from horovod_detox.packing.torch import Uncompressed  # noqa: E402
from horovod_detox.torch.gradients import GradientExchange  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_blocks")
WHOLE: Any = {"exchange": "leaders"}
WIDTHS = [5, 9, 4, 7, 3]


def clip(parameter, _):
    parameter.grad.clamp_(-0.02, 0.02)


def halve(parameter, _):
    parameter.grad = parameter.grad * 0.5


def project(parameter, _):
    parameter.grad.data[0] = 0


def damp_all(_, parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.data.mul_(0.9)


def replace_all(_, parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad - 0.01


HOOKS = [clip, halve, project, damp_all, replace_all]
TIMES = ["before", "after", "later", "removed", "in a hook"]


@st.composite
def jobs(draw):
    detox = Detox(
        group_size=draw(st.sampled_from([1, 2])),
        outer=draw(st.sampled_from(RULES)),
        one_round_bytes=0,
        overlap_bytes=draw(st.integers(8, 600)),
    )
    hook = st.tuples(st.sampled_from(HOOKS), st.sampled_from(TIMES), st.integers(0, 3))
    hooks = draw(st.lists(hook, max_size=4))
    on_tensors = draw(st.sets(st.integers(0, 3), max_size=2))
    return detox, hooks, on_tensors, draw(st.sampled_from([1, 1, 2])), draw(st.integers(0, 2**16))


def layers(seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in pairwise(WIDTHS)]


def backward(parameters, seed):
    hidden = torch.randn(6, WIDTHS[0], generator=torch.Generator().manual_seed(seed))
    for weight in parameters:
        hidden = torch.tanh(hidden @ weight)
    hidden.square().sum().backward()


def exchange_of(detox, collectives, parameters, passes=1) -> Any:
    engines = Engines(detox.plan(collectives.size), lambda name: collectives, None, None)
    named = [(str(i), parameter) for i, parameter in enumerate(parameters)][::-1]
    return GradientExchange(engines, lambda: named, Uncompressed, passes, 2.0, range(100))


def train(job, steps=3, **settings):
    """Return the gradients of rank 0 after each step, as bits; all ranks have the same."""
    detox, hooks, on_tensors, passes, seed = job
    plan = replace(detox, **settings).plan(4 * detox.group_size)

    def program(collectives):
        parameters = layers(seed)
        registered = []

        def register(time):
            for hook, when, i in hooks:
                if when == time:
                    add(parameters[i], hook)

        def add(parameter, hook):
            handle = parameter.register_post_accumulate_grad_hook(
                lambda parameter: hook(parameter, parameters)
            )
            registered.append(handle)

        def register_in_a_hook(_):
            register("in a hook")
            handle.remove()

        for i in on_tensors:
            parameters[i].register_hook(lambda gradient: 3 * gradient)
        register("before")
        exchange = exchange_of(plan.config, collectives, parameters, passes)
        register("after")
        handle = parameters[-1].register_hook(register_in_a_hook)
        group, found = plan.groups.of(collectives.rank), []
        for step in range(steps):
            if step == 1:
                register("later")
                before = len(registered)
                register("removed")
                while len(registered) > before:
                    registered.pop().remove()
            for half in range(passes):
                backward(parameters, hash((seed, step, half, group)))
            found.append([parameter.grad.numpy().tobytes() for parameter in parameters])
            exchange.synchronize()
            for parameter in parameters:
                parameter.grad = None
        return found, exchange._engine.ledger.report().dissents, exchange._engine.step

    results = InProcessCluster(4 * detox.group_size).run(program)
    assert all(result == results[0] for result in results)
    assert results[0][1:] == ({}, steps)
    return results[0]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs())
def test_no_bit_depends_on_hooks_and_parts(job):
    """Hooks before and after the wrap, later, removed, begun in a hook; of tensors, too."""
    assert train(job) == train(job, **WHOLE)


PARTS = Detox(1, outer="mean", one_round_bytes=0, overlap_bytes=64)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("time", TIMES[:-1])
def test_a_hook_that_changes_gradients_in_parts(hook, time):
    """Of the last parameter that gets its gradient: most others could have left."""
    job = PARTS, [(hook, time, 0)], set(), 1, 5
    found, without = train(job), train((PARTS, [], set(), 1, 5))
    assert found == train(job, **WHOLE)
    assert (found == without) == (time == "removed")


def changes_another(parameters):
    """Let the hook of one tensor change the gradient of another parameter."""

    def change(_):
        parameters[-1].grad.mul_(2)

    parameters[0].register_hook(change)


def test_a_change_that_comes_too_late_is_an_error_on_all_ranks():
    """Of another parameter's gradient, which has left, in a hook that nothing tells of."""

    def program(collectives):
        parameters = layers(3)
        changes_another(parameters)
        exchange = exchange_of(PARTS, collectives, parameters)
        with pytest.raises(RuntimeError, match=r"gradients of 3 .*overlap_bytes=0"):
            backward(parameters, collectives.rank)
        return exchange._engine.step

    assert InProcessCluster(4).run(program) == [1] * 4


def test_the_same_change_counts_where_gradients_leave_as_a_whole():
    def program(collectives):
        parameters = layers(3)
        changes_another(parameters)
        exchange_of(replace(PARTS, overlap_bytes=0), collectives, parameters)
        backward(parameters, 7)
        plain = layers(3)
        backward(plain, 7)
        expected = [2 * parameter.grad for parameter in plain]  # the factor of the exchange
        expected[-1] *= 2
        return all(
            torch.equal(parameter.grad, gradient)
            for parameter, gradient in zip(parameters, expected, strict=True)
        )

    assert InProcessCluster(4).run(program) == [True] * 4

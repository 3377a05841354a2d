"""Gradients that a thread exchanges part by part: the same bits however they travel."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.arrays.namespaces import to_numpy
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.driver import Driver

torch: Any = pytest.importorskip("torch")

from horovod_detox.frontend.overlap import Overlap  # noqa: E402
from horovod_detox.packing.torch import Uncompressed, packing_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_blocks")
ROOT = Path(__file__).parents[2]
RULES = [
    "mean",
    "median",
    "trimmed_mean",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clipping(radius=0.5)",
    "nearest_neighbor_mixing+median",
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@st.composite
def jobs(draw):
    detox = Detox(
        group_size=draw(st.sampled_from([1, 2, 3])),
        outer=draw(st.sampled_from(RULES)),
        momentum=draw(st.sampled_from([0.0, 0.0, 0.9])),
        one_round_bytes=0,
        overlap_bytes=draw(st.integers(8, 600)),
    )
    p = detox.group_size * draw(st.integers(3, 4))
    if draw(st.booleans()):
        detox = replace(detox, witnesses=2)
    shapes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    return detox, p, list(zip(shapes, dtypes, strict=True)), draw(st.integers(0, 2**32))


def gradient_of(detox, p, rank, step, i, shape, dtype, seed):
    """Return what a rank computes; of groups of three one rank lies in every step."""
    group = detox.plan(p).groups.of(rank)
    values = np.random.default_rng([seed, step, i, group]).normal(size=shape)
    members = detox.plan(p).groups.members[group]
    is_liar = len(members) > 2 and members.index(rank) == step % len(members)
    return torch.tensor(-100 * values if is_liar else values).to(dtype)


def train(job, in_parts, steps=2):
    """Return the gradients of rank 0 after each step, as bits; all ranks have the same."""
    detox, p, shapes, seed = job

    def program(collectives):
        rng = np.random.default_rng([seed, collectives.rank])
        exchange = "sharded" if in_parts else "gathered"
        changed = {} if in_parts else {"witnesses": 0}
        engine = Engine(replace(detox, exchange=exchange, **changed).plan(p), collectives)
        model = [torch.nn.Parameter(torch.zeros(shape, dtype=d)) for shape, d in shapes]
        packing: Any = packing_of([(str(i), q) for i, q in enumerate(model)], Uncompressed)
        overlap = Overlap(engine, packing, factor=2.0) if in_parts else None
        found = []
        for step in range(steps):
            for i, (parameter, (shape, dtype)) in enumerate(zip(model, shapes, strict=True)):
                parameter.grad = gradient_of(
                    detox, p, collectives.rank, step, i, shape, dtype, seed
                )
            if overlap is None:
                outcome = engine.exchange(packing.pack(), packing.layout, packing.update)
                packing.unpack(outcome.update, 2.0)
            else:
                for i in rng.permutation(len(model))[: rng.integers(0, len(model) + 1)]:
                    overlap.add(model[i])
                    time.sleep(rng.choice([0, 0.001]))
                overlap.finish()
            found.append([to_numpy(q.grad).tobytes() for q in model])
        return found, engine.ledger.report().dissents

    results = InProcessCluster(p).run(program)
    assert all(result == results[0] for result in results)
    return results[0]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs())
def test_no_bit_depends_on_how_gradients_leave(job):
    """Part sizes, the order of hooks on every rank, rules, dtypes, witnesses, momentum."""
    assert train(job, in_parts=True) == train(job, in_parts=False)


def test_another_gradient_makes_another_update():
    """Show that the test above can fail."""
    job = (Detox(1, one_round_bytes=0, overlap_bytes=16), 3, [(20, torch.float32)], 5)
    assert train(job, in_parts=True) != train((*job[:3], 6), in_parts=False)


def test_an_exchange_that_is_abandoned_raises_nothing():
    """A pass has failed, in which a gradient changed while it was sent."""
    detox = Detox(2, outer="mean", one_round_bytes=0, overlap_bytes=64)

    def program(collectives):
        parameter = torch.nn.Parameter(torch.zeros(20))
        packing: Any = packing_of([("it", parameter)], Uncompressed)
        engine = Engine(detox.plan(4), collectives)
        overlap = Overlap(engine, packing)
        parameter.grad = torch.full_like(parameter, float(collectives.rank))
        overlap.add(parameter)
        overlap.abandon()
        parameter.grad = torch.full_like(parameter, 1.0 + engine.plan.groups.of(collectives.rank))
        overlap.add(parameter)
        overlap.finish()
        return parameter.grad.unique().tolist()

    assert InProcessCluster(4).run(program) == [[1.5]] * 4


def test_gradients_are_replaced_again_when_a_later_part_loses_a_vote():
    """Groups 0, 1, 2 vote 1, 2, 6; only in the last part has group 2 no majority."""
    detox = Detox(3, outer="mean", one_round_bytes=0, overlap_bytes=64)
    groups = detox.plan(9).groups

    def program(collectives):
        first, middle, last = (torch.nn.Parameter(torch.zeros(n)) for n in (20, 20, 80))
        named = [("first", first), ("middle", middle), ("last", last)]
        packing: Any = packing_of(named, Uncompressed)
        overlap = Overlap(Engine(detox.plan(9), collectives), packing)
        vote = [1.0, 2.0, 6.0][groups.of(collectives.rank)]
        for _, parameter in named:
            parameter.grad = torch.full_like(parameter, vote)
        overlap.add(first)
        overlap.add(middle)
        seen, deadline = set(), time.monotonic() + 10
        while seen != {3.0} and time.monotonic() < deadline:
            time.sleep(0.001)
            seen = {*first.grad.tolist()}
        if groups.of(collectives.rank) == 2:
            last.grad[-1] = collectives.rank
        overlap.add(last)
        overlap.finish()
        return seen, {*first.grad.tolist(), *last.grad.tolist()}

    assert InProcessCluster(9).run(program) == [({3.0}, {1.5})] * 9


class Failing:
    """A packing of one gradient, which fails when it is told to."""

    def __init__(self, packing):
        self.fails = False
        self._packing = packing

    def __getattr__(self, name):
        return getattr(self._packing, name)

    def pack(self, indices):
        if self.fails:
            raise ZeroDivisionError("cannot pack")
        return self._packing.pack(indices)


def test_an_error_in_the_thread_is_raised_at_the_end_with_its_traceback():
    detox = Detox(3, one_round_bytes=0, overlap_bytes=16)

    def program(collectives):
        parameter = torch.nn.Parameter(torch.zeros(40))
        packing: Any = Failing(packing_of([("p", parameter)], Uncompressed))
        overlap = Overlap(Engine(detox.plan(3), collectives), packing)
        parameter.grad = torch.ones(40)
        packing.fails = True
        overlap.add(parameter)
        with pytest.raises(ZeroDivisionError, match="cannot pack") as caught:
            overlap.finish()
        return [entry.name for entry in caught.traceback]

    for names in InProcessCluster(3).run(program):
        assert names[-2:] == ["work", "pack"]


def test_a_thread_ends_with_its_optimizer():
    before = threading.active_count()
    detox = Detox(3, one_round_bytes=0, overlap_bytes=16)

    def program(collectives):
        parameter = torch.nn.Parameter(torch.zeros(40))
        packing: Any = packing_of([("p", parameter)], Uncompressed)
        overlap = Overlap(Engine(detox.plan(3), collectives), packing)
        parameter.grad = torch.ones(40)
        overlap.add(parameter)
        overlap.finish()

    InProcessCluster(3).run(program)
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_exchange_that_is_over_holds_no_gradient():
    """Not even until Python's garbage collector comes by."""
    detox = Detox(3, one_round_bytes=0, overlap_bytes=16)

    def program(collectives):
        parameter = torch.nn.Parameter(torch.zeros(40))
        packing: Any = packing_of([("p", parameter)], Uncompressed)
        exchanges: list[Any] = []
        engine: Any = Engine(detox.plan(3), collectives)
        begin = engine.begin

        def noted(*args):
            exchange = begin(*args)
            exchanges.append(weakref.ref(exchange))
            return exchange

        engine.begin = noted
        overlap = Overlap(engine, packing)
        for _ in range(3):
            parameter.grad = torch.ones(40)
            overlap.add(parameter)
            overlap.finish()
        return [exchange() for exchange in exchanges]

    gc.disable()
    try:
        assert InProcessCluster(3).run(program) == [[None] * 3] * 3
    finally:
        gc.enable()


def test_tasks_are_done_in_order_and_repeated_while_nothing_else_is_to_be_done():
    driver, done = Driver(), []

    def again():
        done.append("again")
        return again

    driver.submit(lambda: done.append("first") or again)
    deadline = time.monotonic() + 10
    while done.count("again") < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert driver.call(lambda: done.append("last") or 7) == 7
    counted = len(done)
    time.sleep(0.02)
    assert (done[0], done[-1], len(done)) == ("first", "last", counted)
    driver.close()


ENDING = """
import threading, time
from horovod_detox.exchange.driver import Driver
from horovod_detox.exchange.waits import waits

driver, has_begun = Driver(), threading.Event()

def wait_for_others():
    has_begun.set()
    while not waits.process_ends:
        time.sleep(0.01)
    print("waited no longer", flush=True)

driver.submit(wait_for_others)
has_begun.wait()
raise KeyboardInterrupt
"""


def test_the_interpreter_ends_cleanly_while_an_exchange_waits():
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=50, env=environment
    )
    assert ended.stdout == "waited no longer\n"
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
    assert "Fatal" not in ended.stderr
    assert time.monotonic() - started < 40

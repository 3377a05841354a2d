"""What ranks hold alike, in exchanges of an engine: when it is compared, and what is healed."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster, _ThreadCollectives
from horovod_detox.exchange.control import UNKNOWN, Control
from horovod_detox.exchange.step import NoMajority
from horovod_detox.packing.layout import Layout
from horovod_detox.replicas.replicas import Held, Replicas
from horovod_detox.replicas.upkeep import Upkeep
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.majority import Verdict, Vote
from horovod_detox.vote.report import (
    STATE,
    Cause,
)
from tests.replicas.holder import THREES, Holder, healed


class Counted:
    """The seam of one rank, which counts the collectives by name."""

    def __init__(self, collectives):
        self._collectives, self.names = collectives, []
        self.rank, self.size = collectives.rank, collectives.size

    def __getattr__(self, verb):
        def call(name, *args, **kwargs):
            self.names.append(name)
            return getattr(self._collectives, verb)(name, *args, **kwargs)

        return call


def exchanges(
    steps, every, fault: Any = lambda step, holder: None, lie=lambda step, rank: False, **more
):
    """Exchange with an engine that looks after what ranks hold; return what is seen by rank."""
    detox = Detox(**{"group_size": 3, "outer": "mean", "one_round_bytes": 0, **more})
    layout = Layout((("w", (6,), "float64"),))

    def program(collectives):
        counted: Any = Counted(collectives)
        engine = Engine(detox.plan(collectives.size), counted, skips=True)
        holder = Holder(collectives.rank)
        held = Held(holder.pieces, holder.digest_of_batch, files=holder.files)
        replicas = Replicas(engine.plan.groups, held)
        engine.upkeep = Upkeep(replicas, counted, engine.ledger, every)
        updates = []
        for step in range(steps):
            fault(step, holder)
            copy = np.arange(6.0) * (1 + float(holder.held["parameters/x"][0]))
            copy = copy + (lie(step, collectives.rank) * (1.0 + collectives.rank))
            updates.append(engine.exchange(copy.view(np.int64), layout).update.tobytes())
        return holder, engine.ledger.report(), counted.names, updates

    return InProcessCluster(6).run(program)


def names_of(results):
    return [name for name in results[0][2] if name.startswith("replicas")]


def test_a_dissent_is_new_once():
    upkeep = Upkeep(Replicas(THREES, Held(list)), cast(Any, None), Ledger(THREES), 0)
    lost = Verdict((Vote((0,), (2,)), Vote((3,))))
    tied = Verdict((Vote((0,)), Vote(None)))
    clean = Verdict((Vote((0,)), Vote((3,))))
    steps = [lost, lost, tied, tied, clean, lost]
    new = [upkeep._accused_anew(verdict) for verdict in steps]
    assert new == [{2}, set(), {3, 4, 5}, set(), set(), {2}]


def test_usual_steps_cost_no_collective():
    results = exchanges(20, every=5)
    assert names_of(results) == ["replicas"]  # in the second exchange, which finds what is equal
    assert results[0][1].events == ()


@pytest.mark.parametrize("rank", [0, 5])
def test_what_shows_in_no_gradient_is_healed_when_it_is_due(rank):
    def fault(step, holder):
        if step == 7 and holder.rank == rank:
            holder.held["buffers/x"] = np.full(5, 3)

    results = exchanges(12, every=5, fault=fault)
    assert healed([holder for holder, *_ in results], "buffers/x")
    (event,) = results[0][1].events
    assert (event.step, event.kind, event.ranks) == (11, "drift", (rank,))
    assert str(event) == (
        f"step 11: rank {rank} drifted: it held another state than most (buffers/x); healed"
    )
    assert results[0][1].hosts_at_fault == {}


def test_never_is_never():
    def fault(step, holder):
        if step == 6 and holder.rank == 1:
            holder.held["buffers/x"] = np.full(5, 3)

    results = exchanges(12, every=0, fault=fault)
    assert int(results[1][0].held["buffers/x"][0]) == 3


def test_what_shows_in_the_gradient_is_healed_at_once():
    def fault(step, holder):
        if step == 6 and holder.rank == 1:
            holder.held["parameters/x"] = np.full(5, 3)

    results = exchanges(12, every=0, fault=fault)
    (event,) = results[0][1].events
    assert (event.step, event.kind) == (6, "dissent")
    assert event.cause == Cause(STATE, ("parameters/x",), is_healed=True)
    assert results[0][1].dissents == results[0][1].healed == {1: 1}
    assert results[0][1].causes == {1: {"state": 1}}


def test_a_lasting_lie_is_examined_once():
    results = exchanges(12, every=0, lie=lambda step, rank: step > 4 and rank == 1)
    assert len(names_of(results)) == 2
    report = results[0][1]
    assert report.dissents == {1: 7}
    assert report.causes == {1: {"compute": 7}}
    assert [event.cause is not None for event in report.events] == [True] + [False] * 6


def test_a_lie_from_the_start_is_explained_in_the_next_exchange():
    results = exchanges(12, every=0, lie=lambda step, rank: rank == 1)
    assert len(names_of(results)) == 1
    assert results[0][1].causes == {1: {"compute": 12}}
    assert [event.cause is not None for event in results[0][1].events] == [False, True] + [
        False
    ] * 10


@pytest.mark.parametrize("lie", ["digest", "flag", "update"])
def test_what_one_rank_tells_wrongly_again_and_again_costs_a_round_at_most(lie, monkeypatch):
    tell = Control.tell

    def tell_wrongly(control, facts=(), is_complete=True):
        if control._collectives.rank == 4 and control._record["step"][0] > 4:
            if lie == "digest":
                control._record["replicas"] += 7
            elif lie == "flag":
                control._record["flags"] |= UNKNOWN
            else:
                control._record["update"] += 7
        return tell(control, facts, is_complete)

    monkeypatch.setattr(Control, "tell", tell_wrongly)
    results = exchanges(16, every=0)
    assert names_of(results) == ["replicas"] * (2 if lie == "update" else 1)


def two_flips(step, holder):
    """Flip in two members of a group: no two of its copies are the same."""
    if step == 6 and holder.rank in (0, 2):
        holder.held["parameters/x"] = np.full(5, 3 + holder.rank)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"exchange": "gathered"},
        {"exchange": "leaders"},
        {"momentum": 0.9},
    ],
    ids=str,
)
def test_flips_in_two_members_cost_no_vote_not_even_in_that_step(more):
    """The third, which holds what all others hold, speaks for the group."""
    fair = exchanges(12, every=0, **more)
    results = exchanges(12, every=0, fault=two_flips, **more)
    report = results[0][1]
    assert (report.abstentions, report.dissents, report.skipped) == ({}, {}, 0)
    assert report.healed == report.drifts == {0: 1, 2: 1}
    assert healed([holder for holder, *_ in results], "parameters/x")
    assert [each[3] for each in results] == [each[3] for each in fair]
    assert report.steps == 12


def test_who_lies_beside_them_speaks_for_nobody_that_differs():
    """Two hold the right state, of which one lies: nobody knows which, and the vote is lost."""

    def fault(step, holder):
        if step == 6 and holder.rank == 0:
            holder.held["parameters/x"] = np.full(5, 3)

    results = exchanges(12, 0, fault, lambda step, rank: step == 6 and rank == 2, outer="median")
    report = results[0][1]
    assert report.abstentions == {0: 1}
    assert report.healed == {0: 1}


@pytest.mark.parametrize(
    ("bad", "abstentions", "dissents"), [([2], {}, {2: 1}), ([0, 2], {0: 1}, {})]
)
def test_a_copy_that_arrives_otherwise_is_not_taken_over(monkeypatch, bad, abstentions, dissents):
    """Who receives it badly goes on with its own; two that receive the same are no majority."""
    broadcast = _ThreadCollectives.broadcast

    @dataclass
    class Falsified:
        handle: Any
        words: Any

        def wait(self):
            self.handle.wait()
            self.words[0] ^= 1

    def falsify(self, name, words, root):
        handle = broadcast(self, name, words, root)
        is_bad = name.startswith("replicas.copy") and self.rank in bad
        return Falsified(handle, words) if is_bad else handle

    monkeypatch.setattr(_ThreadCollectives, "broadcast", falsify)
    report = exchanges(12, every=0, fault=two_flips)[0][1]
    assert (report.abstentions, report.dissents) == (abstentions, dissents)


def test_a_step_that_is_skipped_heals_too():
    def fault(step, holder):
        if step == 6 and holder.rank in (0, 3):
            holder.held["parameters/x"] = np.full(5, 9)

    def lie(step, rank):
        return step == 6 and rank < 4  # two of each group, each its own

    results = exchanges(12, every=0, fault=fault, lie=lie)
    report = results[0][1]
    assert report.skipped == 1
    assert report.healed == {0: 1, 3: 1}
    assert healed([holder for holder, *_ in results], "parameters/x")
    with pytest.raises(NoMajority):
        exchanges(12, every=0, lie=lie, max_skipped_steps=0)

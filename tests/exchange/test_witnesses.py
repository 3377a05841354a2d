"""Witnesses: a rank that aggregates wrongly is named, and its slice replaced."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.step import NoMajority
from horovod_detox.vote.groups import slice_holders
from tests.cluster import Tampering, exchange_all, failing_everywhere, layout_of


class Miscalculating:
    """A rule on a machine that computes wrongly."""

    def __init__(self, rule):
        self._rule = rule

    def __getattr__(self, name):
        return getattr(self._rule, name)

    def at(self, step):
        return Miscalculating(self._rule.at(step))

    def fit(self, n):
        return Miscalculating(self._rule.fit(n))

    def reduce(self, *args):
        return -self._rule.reduce(*args)


class Misreporting(Tampering):
    """The seam of a rank that tells other words than it computed, in one collective."""

    def __init__(self, collectives, name):
        super().__init__(collectives)
        self._name = name

    def allgather_words(self, name, facts, words):
        told = {"grams": "grams", "results": "update"}.get(self._name)
        facts = np.concatenate([facts[:1], facts[1:] ^ (name == told)])  # no accusations
        words = words ^ (name == self._name == "update")
        return self._collectives.allgather_words(name, facts, words)


@pytest.mark.parametrize("fault", ["rule", "grams", "results", "update"])
@pytest.mark.parametrize(
    "fields",
    [
        {"outer": "median"},
        {"outer": "multi_krum"},
        {"outer": "centered_clipping(radius=1)"},
        {"inner": "geometric_median", "outer": "geometric_median", "buckets": 2},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_wrong_owner_is_named_by_witnesses_and_its_slice_replaced(fields, fault):
    detox = Detox(group_size=3, witnesses=2, **fields)
    plan = detox.plan(9)
    layout = layout_of(np.zeros(50, np.float32))
    rng = np.random.default_rng(5)
    honest = [rng.normal(size=50).astype(np.float32) for _ in plan.groups.members]

    def program(collectives):
        seam: Any = collectives
        mine = plan
        if collectives.rank == 4:
            seam = Misreporting(collectives, fault)
            if fault == "rule":
                mine = replace(plan, rule=Miscalculating(plan.rule))
        engine = Engine(mine, seam)
        copy = layout.pack([honest[plan.groups.of(collectives.rank)]])
        return [engine.exchange(copy, layout).update for _ in range(3)], engine.ledger.report()

    copies = [[honest[plan.groups.of(rank)]] for rank in range(9)]
    fair, _ = exchange_all(detox, [copies] * 3)
    caught = fault != "grams" or plan.rule.uses_gram
    for updates, report in InProcessCluster(9).run(program):
        for update, expected in zip(updates, fair[0], strict=True):
            assert np.array_equal(update, expected.update)
        assert report.dissents == {}
        assert report.miscalculations == ({4: 3} if caught else {})


def test_a_slice_is_mended_by_a_witness_that_is_right():
    plan = Detox(group_size=2, witnesses=4).plan(10)
    owner = 4
    faulty = slice_holders(plan.groups, 4)[:2, owner].tolist()  # the owner and its first witness
    layout = layout_of(np.zeros(50))

    def program(collectives):
        wrong = collectives.rank in faulty
        mine = replace(plan, rule=Miscalculating(plan.rule)) if wrong else plan
        value = np.full(50, 1.0 + plan.groups.of(collectives.rank))
        engine = Engine(mine, collectives)  # type: ignore[arg-type]
        update = engine.exchange(layout.pack([value]), layout).update
        return layout.typed(update)[0].tolist(), engine.ledger.report().miscalculations

    for update, miscalculations in InProcessCluster(10).run(program):
        assert update == [3.0] * 50
        assert miscalculations == dict.fromkeys(sorted(faulty), 1)


@pytest.mark.parametrize("outer", ["median", "krum"])
def test_a_single_witness_finds_a_wrong_owner_but_cannot_tell_who_errs(outer):
    plan = Detox(group_size=2, outer=outer, witnesses=1).plan(8)
    layout = layout_of(np.zeros(50))

    def program(collectives):
        wrong = collectives.rank == 2
        mine = replace(plan, rule=Miscalculating(plan.rule)) if wrong else plan
        value = np.full(50, 1.0 + plan.groups.of(collectives.rank))
        Engine(mine, collectives).exchange(layout.pack([value]), layout)  # type: ignore[arg-type]

    failing_everywhere(
        program, 8, NoMajority, r"ranks \[.*2.*\] computed different results from the"
    )


class TwoFaced(Tampering):
    """An owner that sends another slice than it fingerprints."""

    def allgather_words(self, name, facts, words):
        return self._collectives.allgather_words(name, facts, words ^ (name == "update"))

    def broadcast(self, name, words, root):
        if root == self.rank and name.startswith("update"):
            words ^= 1
        return self._collectives.broadcast(name, words, root)


@pytest.mark.parametrize("gathered", [0, 1 << 20])
def test_an_owner_that_sends_another_slice_than_it_tells_is_named(gathered, monkeypatch):
    monkeypatch.setattr("horovod_detox.exchange.owners.GATHERED_LAST", gathered)
    plan, layout = Detox(witnesses=2).plan(9), layout_of(np.zeros(50))

    def program(collectives):
        seam: Any = TwoFaced(collectives) if collectives.rank == 4 else collectives
        value = np.full(50, 1.0 + plan.groups.of(collectives.rank))
        engine = Engine(plan, seam)
        update = engine.exchange(layout.pack([value]), layout).update
        return layout.typed(update)[0].tolist(), engine.ledger.report().miscalculations

    assert InProcessCluster(9).run(program) == [([2.0] * 50, {4: 1})] * 9

"""Steps in which too few votes are left: skipped by all ranks, counted, and not for ever."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.determinism.first_step import FirstStep
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.step import NoMajority
from tests.cluster import layout_of
from tests.exchange.test_witnesses import Miscalculating

WIDTH = 600
LAYOUT = layout_of(np.zeros(WIDTH, np.float32))
WAYS = [
    {"one_round_bytes": 0, "overlap_bytes": 0},
    {"one_round_bytes": 0, "overlap_bytes": 900},
    {"one_round_bytes": 0, "overlap_bytes": 900, "outer": "krum"},
    {"one_round_bytes": 0, "overlap_bytes": 900, "momentum": 0.9},
    {"one_round_bytes": 1 << 20},
    {"exchange": "leaders"},
]
pytestmark = pytest.mark.usefixtures("small_blocks")


def run(detox, corrupt, steps, ranks=6, skips=True, **options):
    """Exchange `steps` gradients of ones, times 1 + the group, on every rank.

    Args:
        corrupt: is called with step, rank and gradient, and may change it.

    Returns:
        by rank: the updates, the failures, what ended it and the report.
    """
    plan = detox.plan(ranks)

    def program(collectives):
        engine = Engine(plan, collectives, skips=skips, **options)
        updates, failures, error = [], [], None
        try:
            for step in range(steps):
                gradient = np.full(WIDTH, 1.0 + plan.groups.of(collectives.rank), np.float32)
                corrupt(step, collectives.rank, gradient)
                outcome = exchange(engine, LAYOUT.pack([gradient]))
                updates.append(LAYOUT.typed(outcome.update)[0].copy())
                failures.append(outcome.failure is not None)
        except NoMajority as caught:
            error = caught
        return updates, failures, error, engine.ledger.report()

    return InProcessCluster(ranks, 20.0).run(program)


def exchange(engine, words):
    if len(engine.parts(LAYOUT)) == 1:
        return engine.exchange(words, LAYOUT)
    begun = engine.begin(words, LAYOUT, np.empty_like(words))
    for part in range(len(engine.parts(LAYOUT))):
        begun.send(part)
        begun.advance()
    return engine.finish(begun)


def disagree_in(*steps, place=-1, ranks=(0, 1, 2, 3, 4, 5)):
    """Have ranks send different numbers in one place, in some steps."""

    def corrupt(step, rank, gradient):
        if step in steps and rank in ranks:
            gradient[place] = 100 + rank

    return corrupt


@pytest.mark.parametrize("fields", WAYS)
def test_a_step_without_votes_is_skipped_and_leaves_no_trace(fields):
    """The last place is in the last part: the first ones are under way when the votes are lost."""
    detox = Detox(group_size=2, **fields)
    expected = run(detox, disagree_in(), steps=3)[0][0]
    for updates, failures, error, report in run(detox, disagree_in(1, 2), steps=5):
        assert error is None
        assert failures == [False, True, True, False, False]
        assert not updates[1].any()
        assert not updates[2].any()
        kept = [updates[i].tobytes() for i in (0, 3, 4)]
        assert kept == [update.tobytes() for update in expected]
        assert (report.steps, report.skipped) == (5, 2)
        assert report.abstentions == {0: 2, 1: 2, 2: 2}


def test_a_declared_f_is_not_lowered_by_groups_that_tie():
    """Two of three votes, one of them captured: their average is what the liars want."""
    lies = disagree_in(0, place=0, ranks=(1, 3))  # ties groups 1 and 0; group 2 has a vote
    undeclared = run(Detox(group_size=2, outer="trimmed_mean"), lies, steps=1)
    assert [failures for _, failures, _, _ in undeclared] == [[False]] * 6
    given = run(Detox(group_size=2, outer="trimmed_mean(f=1)"), lies, steps=1)
    assert [failures for _, failures, _, _ in given] == [[True]] * 6


def test_votes_that_are_not_finite_lower_f_and_skip_nothing():
    def overflow(step, rank, gradient):
        if rank % 3 == 2:
            gradient[5] = np.inf

    detox = Detox(group_size=2, outer="trimmed_mean(f=1)")
    for updates, failures, _, report in run(detox, overflow, steps=12):
        assert not any(failures)
        assert (updates[-1] == 1.5).all()
        assert (report.skipped, report.non_finite) == (0, {2: 12})


def test_after_too_many_in_a_row_the_job_ends_with_what_happened(caplog):
    detox = Detox(group_size=2, max_skipped_steps=3)
    corrupt = disagree_in(1, 2, 3, 5, 6, 7, 8, 9)
    for _, failures, error, report in run(detox, corrupt, steps=20):
        assert failures == [False, True, True, True, False, True, True, True]
        assert report.skipped == 6
        text = str(error)
        assert text.startswith(
            "step 8: no update in this step: every group lost its majority. With"
        )
        assert "Detox(max_skipped_steps=3) skips no more in a row. So far: " in text
        assert text.endswith(
            "group 0 abstained in 7, group 1 abstained in 7, group 2 abstained in 7 of 9 steps, 6 "
            "of them skipped"
        )
    warnings = [r.message for r in caplog.records if "All ranks skip the step" in r.message]
    assert len(warnings) == 6  # each rank has a ledger of its own here, and warns once
    assert warnings[0].startswith("step 1: no update in this step: every group lost")
    assert warnings[0].endswith("up to 3 in a row (Detox(max_skipped_steps=))")


@pytest.mark.parametrize(
    ("detox", "skips"), [(Detox(2, max_skipped_steps=0), True), (Detox(2), False)]
)
def test_where_no_step_may_be_skipped_the_first_ends_the_job(detox, skips, caplog):
    for updates, _, error, report in run(detox, disagree_in(1), steps=3, skips=skips):
        assert len(updates) == 1
        assert "every group lost its majority" in str(error)
        assert (report.steps, report.skipped) == (2, 0)
    assert "skip" not in caplog.text


@pytest.mark.parametrize("outer", ["median", "krum"])
def test_nothing_is_under_way_after_a_step_that_witnesses_cannot_decide(outer):
    """In every part a witness has another result than the owner; Horovod's names are taken."""
    detox = Detox(2, outer=outer, witnesses=1, one_round_bytes=0, overlap_bytes=900)
    plan = detox.plan(8)

    class Waited:
        """The seam of one rank, which keeps what is under way."""

        def __init__(self, collectives):
            self._collectives, self.under_way = collectives, []
            self.rank, self.size = collectives.rank, collectives.size

        def __getattr__(self, name):
            def call(*args, **kwargs):
                handle = getattr(self._collectives, name)(*args, **kwargs)
                self.under_way.append(handle)
                return handle

            return call

    def program(collectives):
        seam: Any = Waited(collectives)
        mine: Any = plan
        if collectives.rank == 2:
            mine = replace(plan, rule=Miscalculating(plan.rule))  # type: ignore[arg-type]
        engine = Engine(mine, seam, skips=True)
        gradient = np.full(WIDTH, 1.0 + plan.groups.of(collectives.rank), np.float32)
        outcome = exchange(engine, LAYOUT.pack([gradient]))
        assert len(engine.parts(LAYOUT)) > 1
        return outcome.failure is not None, [h for h in seam.under_way if not h._is_gone]

    assert InProcessCluster(8).run(program) == [(True, [])] * 8


def test_who_goes_on_after_the_error_is_in_step_with_the_others():
    plan = Detox(group_size=2).plan(6)

    def program(collectives):
        engine = Engine(plan, collectives)
        for step in range(3):
            gradient = np.full(WIDTH, float(collectives.rank) if step == 1 else 1.0, np.float32)
            try:
                engine.exchange(LAYOUT.pack([gradient]), LAYOUT)
            except NoMajority:
                assert step == 1
        return engine.step

    assert InProcessCluster(6).run(program) == [3] * 6


def test_a_first_step_of_a_drill_can_be_skipped():
    """Its conditions are on their way, and are again in the next step."""
    detox = Detox(group_size=2)
    groups = detox.plan(6).groups

    class OfRank(FirstStep):
        def __init__(self) -> None:
            super().__init__(groups, dict, is_drill=True)

    plan = detox.plan(6)

    def program(collectives):
        engine = Engine(plan, collectives, first_step=OfRank(), skips=True)
        failures = []
        for step in range(3):
            gradient: Any = np.ones(WIDTH, np.float32)
            disagree_in(0, 1)(step, collectives.rank, gradient)
            failures.append(exchange(engine, LAYOUT.pack([gradient])).failure is not None)
        return failures

    assert InProcessCluster(6).run(program) == [[True, True, False]] * 6

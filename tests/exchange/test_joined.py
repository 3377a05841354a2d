"""Exchanges of the ranks that have data while others have joined."""

from dataclasses import replace

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority, Postponed
from tests.cluster import layout_of

pytestmark = pytest.mark.usefixtures("small_blocks")
WAYS = {
    "in parts": Detox(one_round_bytes=0, overlap_bytes=8 * 5),
    "whole": Detox(one_round_bytes=0, overlap_bytes=0),
    "witnesses": Detox(one_round_bytes=0, witnesses=1),
    "gathered": Detox(),
    "leaders": Detox(exchange="leaders"),
    "blake3": Detox(fingerprint="blake3"),
}
LAYOUT = layout_of(np.zeros(40, np.float32))


def copies_of(groups, step, liars=()):
    votes = np.random.default_rng(step).normal(size=(len(groups), 40)).astype(np.float32)
    copies = [votes[groups.of(rank)].copy() for rank in range(groups.world_size)]
    for rank in liars:
        copies[rank] *= -1
    return copies


def train(detox, p, joins, liars=(), steps=3, skips=False, incomplete=()):
    """Exchange; `joins` gives the step before which a rank joins. Return, by rank, what is seen."""
    plan = detox.plan(p)

    def program(collectives):
        rank = collectives.rank
        engine = Engine(plan, collectives, skips=skips)
        updates = []
        for step in range(steps):
            if joins.get(rank) == step:
                engine.leave()
                collectives.join()
                return updates, engine.ledger.report()
            words = LAYOUT.pack([copies_of(plan.groups, step, liars)[rank]])
            is_complete = rank not in incomplete
            while True:
                try:
                    if len(engine.parts(LAYOUT)) > 1 and not engine.presence.some_have_joined:
                        under_way = engine.begin(words, LAYOUT, np.empty_like(words))
                        under_way.send(0)
                        under_way.advance()
                        outcome = engine.finish(under_way)
                    else:
                        outcome = engine.exchange(words, LAYOUT, None, is_complete)
                    break
                except Postponed:
                    is_complete = True
            updates.append(None if outcome.failure else LAYOUT.typed(outcome.update)[0].tobytes())
        return updates, engine.ledger.report()

    return InProcessCluster(p).run(program)


def expected(detox, p, step, present, liars=()):
    """Return what the algorithm makes of the copies of some groups."""
    groups = detox.plan(p).groups
    copies = copies_of(groups, step)
    ranks = [rank for group in present for rank in groups.members[group]]
    few = replace(detox, group_size=detox.group_size, witnesses=0)
    plan = few.plan(len(ranks))
    chosen = [copies[groups.members[group][0]] for group in present]
    words = [LAYOUT.pack([chosen[plan.groups.of(rank)]]) for rank in range(len(ranks))]
    return LAYOUT.typed(aggregate_copies(plan, LAYOUT.buffers, words).update)[0].tobytes()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("outer", ["mean", "median", "geometric_median"])
def test_a_group_that_has_joined_has_no_vote_and_is_no_fault(way, outer):
    detox = replace(WAYS[way], group_size=3, outer=outer)
    if way == "blake3":
        pytest.importorskip("blake3")
    groups = detox.plan(9).groups
    joins = dict.fromkeys(groups.members[1], 1)
    results = train(detox, 9, joins, liars=[0])
    for rank, (updates, report) in enumerate(results):
        assert updates[0] == expected(detox, 9, 0, [0, 1, 2])
        assert report.abstentions == {}
        if rank not in joins:
            assert updates[1:] == [expected(detox, 9, step, [0, 2]) for step in (1, 2)]
            assert report.dissents == {0: 3}


@pytest.mark.parametrize("way", WAYS)
def test_a_member_that_joins_alone_is_a_dissenter(way):
    if way == "blake3":
        pytest.importorskip("blake3")
    detox = replace(WAYS[way], group_size=3)
    for rank, (updates, report) in enumerate(train(detox, 6, {2: 1})):
        if rank != 2:
            assert updates == [expected(detox, 6, step, [0, 1]) for step in range(3)]
            assert report.dissents == {2: 2}


@pytest.mark.parametrize("way", WAYS)
def test_a_member_that_goes_on_alone_is_a_dissenter(way):
    if way == "blake3":
        pytest.importorskip("blake3")
    detox = replace(WAYS[way], group_size=3)
    for rank, (updates, report) in enumerate(train(detox, 6, {0: 1, 4: 1})):
        if rank in (1, 2, 3, 5):
            assert updates[1:] == [expected(detox, 6, step, [1]) for step in (1, 2)]
            assert (report.dissents, report.abstentions) == ({2: 2}, {})


def test_a_rank_may_have_no_data_at_all():
    detox = Detox(3, one_round_bytes=0)
    for rank, (updates, report) in enumerate(train(detox, 6, {3: 0})):
        if rank != 3:
            assert updates == [expected(detox, 6, step, [0, 1]) for step in range(3)]
            assert report.dissents == {3: 3}


def test_joined_groups_lower_no_declared_f_and_do_not_end_the_job():
    """The median of three votes stands one that is captured, that of two none."""
    detox = Detox(3, num_byzantine=2, max_skipped_steps=1)
    joins = dict.fromkeys(detox.plan(9).groups.members[2], 1)
    for rank, (updates, report) in enumerate(train(detox, 9, joins, steps=5, skips=True)):
        if rank not in joins:
            assert updates[1:] == [None] * 4
            assert report.skipped == 4
    with pytest.raises(NoMajority):
        train(detox, 9, joins, steps=5)


def test_gradients_may_be_missing_beside_joined_ranks():
    detox = Detox(3)
    joins = dict.fromkeys(detox.plan(9).groups.members[2], 1)
    for incomplete in ([1], [0, 1, 3, 4, 6, 7]):
        results = train(detox, 9, joins, incomplete=incomplete)
        for rank, (updates, report) in enumerate(results):
            if rank not in joins:
                assert updates[1:] == [expected(detox, 9, step, [0, 1]) for step in (1, 2)]
                assert report.steps == 3


def test_joined_ranks_do_not_make_a_half_done_step_whole():
    detox = Detox(3, one_round_bytes=0)
    plan = detox.plan(9)

    def program(collectives):
        engine = Engine(plan, collectives)
        words = LAYOUT.pack([copies_of(plan.groups, 0)[collectives.rank]])
        engine.exchange(words, LAYOUT)
        if collectives.rank in plan.groups.members[2]:
            engine.leave()
            return collectives.join()
        with pytest.raises(Postponed):
            engine.exchange(words, LAYOUT, None, is_complete=collectives.rank == 7)
        return engine.exchange(words, LAYOUT).verdict.joined

    assert InProcessCluster(9).run(program) == [(2,), (2,), None] * 3

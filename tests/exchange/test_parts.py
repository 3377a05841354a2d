"""Copies that are exchanged part by part: the same update as of the whole, whatever comes late."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.aggregators import Aggregator
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.cut import cut
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority
from tests.cluster import Tampering, layout_of, parts_wanted

pytestmark = pytest.mark.usefixtures("small_blocks")
SETTINGS = Detox(one_round_bytes=0, overlap_bytes=8 * 7)


def exchange_in_parts(detox, copies, order=None, seam=lambda collectives: collectives, steps=1):
    """Exchange the buffer of every rank, `copies[rank]`; return what `Engine` and ledger say."""
    plan, layout = detox.plan(len(copies)), layout_of(copies[0])

    def program(collectives):
        engine = Engine(plan, seam(collectives))
        count = len(engine.parts(layout))
        words = layout.pack([copies[collectives.rank]])
        outcome: Any = None
        for _ in range(steps):
            copy, update = np.full_like(words, -1), np.full_like(words, -1)
            under_way = engine.begin(copy, layout, update)
            sent = range(count) if order is None else order(collectives.rank, count)
            for part in sent:
                bounds = slice(engine.parts(layout)[part].start, engine.parts(layout)[part].stop)
                copy[bounds] = words[bounds]
                under_way.send(part)
                under_way.advance()
            copy[:] = words
            outcome = engine.finish(under_way)
        return outcome, engine.ledger.report(), count

    return InProcessCluster(len(copies)).run(program)


@st.composite
def jobs(draw):
    r = draw(st.integers(1, 4))
    p = draw(st.integers(max(r, 2), 12))
    outer = draw(st.sampled_from(["mean", "median", "trimmed_mean", "phocas", "sign_majority"]))
    detox = replace(SETTINGS, group_size=r, outer=outer, overlap_bytes=draw(st.integers(1, 200)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = detox.plan(p).groups
    width = draw(st.integers(1, 150))
    honest = rng.normal(size=(len(groups), width)).astype(np.float32)
    copies = [honest[groups.of(rank)].copy() for rank in range(p)]
    for rank in rng.permutation(p)[: draw(st.integers(0, p // 2))]:
        bad = rng.integers(0, width, draw(st.integers(1, 3)))
        copies[rank][bad] = rng.choice([np.nan, 1e9, rng.normal()])
    orders = [rng.permutation(50) for _ in range(p)]
    kept = [draw(st.integers(0, 50)) for _ in range(p)]

    def order(rank, count):
        return [part for part in orders[rank] if part < count][: kept[rank]]

    return detox, copies, order


@settings(max_examples=40)
@given(jobs())
def test_parts_in_any_order_give_what_the_whole_algorithm_gives(job):
    """Any ranks may be faulty, any parts may be late: votes count as in a vote on all slices."""
    detox, copies, order = job
    plan, layout = detox.plan(len(copies)), layout_of(copies[0])
    words = [layout.pack([copy]) for copy in copies]
    parts = parts_wanted(detox, layout)
    try:
        expected = aggregate_copies(plan, layout.buffers, words, parts=parts)
    except NoMajority:
        with pytest.raises(NoMajority):
            exchange_in_parts(detox, copies, order)
        return
    for outcome, _, count in exchange_in_parts(detox, copies, order):
        assert count == len(cut(layout.words, len(copies), parts))
        assert outcome.update.tobytes() == expected.update.tobytes()
        assert (outcome.verdict, outcome.non_finite) == (expected.verdict, expected.non_finite)


def test_a_vote_that_is_lost_in_the_last_part_is_taken_out_of_the_first():
    """Groups 0, 1, 2 vote 1, 2, 6; only the last element of group 2 has no majority."""
    copies = [np.full(100, [1.0, 2.0, 6.0][rank % 3], np.float32) for rank in range(9)]
    fair = exchange_in_parts(replace(SETTINGS, outer="mean"), copies)
    assert fair[0][2] == 4
    assert set(fair[0][0].update.view(np.float32)) == {3.0}
    copies[2][-1], copies[5][-1] = 7, 8
    for outcome, report, _ in exchange_in_parts(replace(SETTINGS, outer="mean"), copies):
        assert set(outcome.update.view(np.float32)) == {1.5}
        assert report.abstentions == {2: 1}
        assert report.dissents == {}


def test_a_vote_for_nan_does_not_count_where_another_part_has_no_vote():
    copies = [np.full(100, rank % 3, np.float32) for rank in range(9)]
    copies[2][0] = copies[5][0] = np.nan
    copies[5][-1], copies[8][-1] = 7, 8
    for outcome, report, _ in exchange_in_parts(replace(SETTINGS, outer="mean"), copies):
        assert set(outcome.update.view(np.float32)) == {0.5}
        assert (report.abstentions, outcome.non_finite) == ({2: 1}, ())


def test_a_part_is_aggregated_before_the_last_is_known():
    calls: list[str] = []

    class Listening(Tampering):
        def allgather_words(self, name, facts, words):
            if self.rank == 0:
                calls.append(name)
            return self._collectives.allgather_words(name, facts, words)

    copies = [np.ones(100, np.float32)] * 6
    plan, layout = SETTINGS.plan(6), layout_of(copies[0])

    def program(collectives):
        seam: Any = Listening(collectives)
        engine = Engine(plan, seam)
        under_way = engine.begin(copy := layout.pack([copies[0]]), layout, np.zeros_like(copy))
        under_way.send(0)
        collectives.allgather("all have sent", np.zeros(1)).wait()
        under_way.advance()
        collectives.allgather("all have gone on", np.zeros(1)).wait()
        early = list(calls)
        engine.finish(under_way)
        return early

    early = InProcessCluster(6).run(program)[0]
    assert early == ["update"]


@dataclass(frozen=True)
class Showing(Aggregator):
    """A rule that shows every bit of the Gram matrix."""

    uses_gram = True

    def weights(self, gram):
        return gram[:1, :-1]


@pytest.mark.parametrize("witnesses", [0, 2])
def test_no_bit_of_a_gram_matrix_depends_on_the_parts(witnesses):
    rng = np.random.default_rng(1)
    detox = replace(SETTINGS, outer=Showing(), witnesses=witnesses)
    votes = rng.normal(size=(3, 500))
    copies = [votes[detox.plan(9).groups.of(rank)] for rank in range(9)]
    updates, counts = set(), set()
    for most in (0, 8 * 300, 8 * 100, 8 * 20):
        for outcome, _, count in exchange_in_parts(replace(detox, overlap_bytes=most), copies):
            updates.add(outcome.update.tobytes())
            counts.add(count)
    layout = layout_of(copies[0])
    words = [layout.pack([copy]) for copy in copies]
    updates.add(aggregate_copies(detox.plan(9), layout.buffers, words).update.tobytes())
    assert counts == {1, 2, 8, 32}
    assert len(updates) == 1


def test_senders_who_send_something_else_are_replaced_in_their_part():
    copies = [np.full(100, rank % 3, np.float32) for rank in range(9)]

    class Lying(Tampering):
        def alltoall(self, name, facts, parts, spare=None):
            if self.rank == 4 and name == "slices.3":
                parts = [part + 1 for part in parts]
            return self._collectives.alltoall(name, facts, parts, spare)

    for outcome, report, _ in exchange_in_parts(SETTINGS, copies, seam=Lying, steps=3):
        assert set(outcome.update.view(np.float32)) == {1.0}
        assert report.dissents == {4: 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"exchange": "leaders"},
        {"exchange": "gathered"},
        {"one_round_bytes": 1 << 20},
        {"overlap_bytes": 0},
        {"overlap_bytes": 400},
    ],
)
def test_what_needs_the_whole_gradient_is_not_exchanged_in_parts(fields):
    plan, layout = replace(SETTINGS, **fields).plan(9), layout_of(np.zeros(100, np.float32))
    assert Engine(plan, InProcessCluster(9).run(lambda c: c)[0]).parts(layout) == cut(50, 9)

"""The exchanges on the in-process cluster: one update everywhere, liars named, never a hang."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS, Aggregator, CenteredClipping, Mean, by_name
from horovod_detox.engine import Engine
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority
from horovod_detox.exchange.waits import ExchangeTimeout
from horovod_detox.vote.groups import PLACEMENTS, most_witnesses
from tests.cluster import Tampering, exchange_all, failing_everywhere, layout_of

DTYPES = [np.float16, np.float32, np.float64]


@pytest.fixture(params=sorted(EXCHANGES))
def exchange(request):
    """Run a test with every exchange."""
    return request.param


@st.composite
def jobs(draw):
    """Draw settings, honest buffers per group, and a minority of liars in every group."""
    r = draw(st.integers(1, 5))
    p = draw(st.integers(max(r, 2), 24))
    outer = draw(st.sampled_from(["mean", "median", "trimmed_mean", "geometric_median", "meamed"]))
    exchange = draw(st.sampled_from(sorted(EXCHANGES)))
    detox = Detox(
        group_size=r,
        outer=outer,
        placement=draw(st.sampled_from(PLACEMENTS)),
        exchange=exchange,
        one_round_bytes=0,
    )
    groups = detox.plan(p).groups
    if exchange == "sharded":
        witnesses = draw(st.integers(0, min(3, most_witnesses(groups))))
        detox = replace(detox, witnesses=witnesses)
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3, unique=True))
    lengths = [draw(st.integers(1, 40)) for _ in dtypes]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    honest = [
        [rng.normal(size=n).astype(t) for n, t in zip(lengths, dtypes, strict=True)]
        for _ in groups.members
    ]
    liars = [
        rank
        for members in groups.members
        for rank in draw(st.permutations(members))[: draw(st.integers(0, (len(members) - 1) // 2))]
    ]
    return detox, groups, honest, sorted(liars), rng


def corrupted(groups, honest, liars, rng):
    """Give every rank its group's buffers, and liars something else."""
    copies = [[buffer.copy() for buffer in honest[groups.of(r)]] for r in range(groups.world_size)]
    for liar in liars:
        for buffer in copies[liar]:
            buffer += rng.choice([1, -100]).astype(buffer.dtype)
    return copies


@settings(max_examples=60)
@given(jobs())
def test_a_minority_in_every_group_changes_no_bit_and_is_named(job):
    detox, groups, honest, liars, rng = job
    fair = corrupted(groups, honest, [], rng)
    expected, reports = exchange_all(detox, [fair])
    assert reports[0].dissents == {}
    lied = corrupted(groups, honest, liars, rng)
    outcomes, reports = exchange_all(detox, [lied])
    for (outcome,), report in zip(outcomes, reports, strict=True):
        assert np.array_equal(outcome.update, expected[0][0].update)
        assert outcome.verdict == outcomes[0][0].verdict
        assert tuple(report.dissents) == tuple(liars)
    layout = layout_of(*fair[0])
    plan = detox.plan(len(fair))
    reference = aggregate_copies(plan, layout.buffers, [layout.pack(copy) for copy in fair])
    assert np.array_equal(expected[0][0].update, reference.update)


@dataclass(frozen=True)
class Sensitive(Aggregator):
    """A rule that takes another vote when a single bit of the Gram matrix is another."""

    uses_gram: ClassVar[bool] = True

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n = len(gram) - 1
        return np.eye(n)[[crc32(gram.tobytes()) % n]]


@pytest.mark.parametrize(
    ("exchange", "witnesses"), [*((name, 0) for name in EXCHANGES), ("sharded", 2)]
)
@pytest.mark.parametrize("inner", [Mean(), Sensitive()], ids=["one level", "two levels"])
def test_gram_matrices_have_the_same_bits_in_every_exchange(exchange, witnesses, inner):
    buckets = None if inner == Mean() else 3
    detox = Detox(1, inner, Sensitive(), buckets, exchange=exchange, witnesses=witnesses)
    detox = replace(detox, one_round_bytes=0)
    steps = np.random.default_rng(0).standard_normal((8, 7, 501)).astype(np.float32)
    copies = [[[rank[:301], rank[301:].astype(np.float64)] for rank in step] for step in steps]
    layout, plan = layout_of(*copies[0][0]), detox.plan(7)
    outcomes, _ = exchange_all(detox, copies)
    for ours, step in zip(outcomes[3], copies, strict=True):
        reference = aggregate_copies(plan, layout.buffers, [layout.pack(copy) for copy in step])
        assert np.array_equal(ours.update, reference.update)


@pytest.mark.parametrize(
    ("p", "outer", "exchange"),
    [
        *product([12], sorted(AGGREGATORS), ["sharded", "leaders"]),
        # Rules of every kind: columns, the Gram matrix, a centre.
        *product([45], ["median", "multi_krum", "centered_clipping"], ["sharded", "leaders"]),
        (45, "multi_krum", "gathered"),  # every rank does the work of all
    ],
)
def test_many_ranks_with_every_rule(p, outer, exchange):
    rule = by_name(outer, radius=1.0) if outer == "centered_clipping" else outer
    detox = Detox(outer=rule, exchange=exchange, one_round_bytes=0)
    groups = detox.plan(p).groups
    rng = np.random.default_rng(0)
    honest = [[rng.normal(size=101).astype(np.float32)] for _ in groups.members]
    liars = [members[i % 3] for i, members in enumerate(groups.members)]
    steps = [corrupted(groups, honest, liars, rng) for _ in range(2)]
    outcomes, reports = exchange_all(detox, steps)
    fair, _ = exchange_all(detox, [corrupted(groups, honest, [], rng)] * 2)
    for rank in range(p):
        for step in range(2):
            assert np.array_equal(outcomes[rank][step].update, fair[0][step].update)
        assert reports[rank].dissents == dict.fromkeys(sorted(liars), 2)
        assert reports[rank].events == reports[0].events


def test_flips_in_different_slices_of_two_members_are_both_masked(exchange):
    copies = [[np.arange(60, dtype=np.float32) + rank % 2] for rank in range(6)]
    copies[0][0][59] = -1
    copies[4][0][0] = -1
    outcomes, reports = exchange_all(
        Detox(outer="mean", exchange=exchange, one_round_bytes=0), [copies]
    )
    update = layout_of(*copies[0]).typed(outcomes[5][0].update)[0]
    assert np.array_equal(update, np.arange(60) + np.float32(0.5))
    assert (reports[0].dissents, reports[0].abstentions) == ({0: 1, 4: 1}, {})


def test_an_abstaining_group_is_left_out_and_nobody_is_blamed(exchange):
    detox = Detox(group_size=3, outer="mean", exchange=exchange, one_round_bytes=0)
    values = {0: 1.0, 1: 2.0, 2: 7.0}
    copies = [[np.full(5, values[rank % 3], np.float32)] for rank in range(9)]
    copies[5][0][:] = 100  # group 2 holds ranks 2, 5, 8: three different copies
    copies[8][0][:] = -100
    outcomes, reports = exchange_all(detox, [copies])
    layout = layout_of(*copies[0])
    for (outcome,), report in zip(outcomes, reports, strict=True):
        assert layout.typed(outcome.update)[0].tolist() == [1.5] * 5
        assert (report.dissents, report.abstentions) == ({}, {2: 1})
        assert report.events[0].ranks == (2, 5, 8)


def test_no_majority_anywhere_is_an_error_on_every_rank(exchange):
    copies = [[np.full(5, float(rank), np.float32)] for rank in range(6)]
    plan = Detox(exchange=exchange, one_round_bytes=0).plan(6)
    layout = layout_of(*copies[0])

    def program(collectives):
        engine = Engine(plan, collectives)
        with pytest.raises(NoMajority, match=r"group 1 \(ranks 1, 3, 5\).*seed_group"):
            engine.exchange(layout.pack(copies[collectives.rank]), layout)
        return True

    assert InProcessCluster(6).run(program) == [True] * 6


@pytest.mark.parametrize("outer", ["median", "trimmed_mean(f=1)"])
def test_a_captured_group_cannot_leave_the_hull_of_honest_votes(outer, exchange):
    detox = Detox(group_size=3, outer=outer, exchange=exchange, one_round_bytes=0)
    groups = detox.plan(15).groups
    rng = np.random.default_rng(3)
    honest = [[rng.normal(size=50).astype(np.float32)] for _ in groups.members]
    for lie in (1e30, -1e30, 0.0):
        copies = corrupted(groups, honest, [], rng)
        for captor in groups.members[2][:2]:
            copies[captor][0][:] = lie
        outcomes, _ = exchange_all(detox, [copies])
        update = layout_of(*copies[0]).typed(outcomes[0][0].update)[0]
        votes = np.stack([buffers[0] for g, buffers in enumerate(honest) if g != 2])
        slack = 4 * np.finfo(np.float32).eps * np.abs(votes).max(axis=0)
        assert (update >= votes.min(axis=0) - slack).all()
        assert (update <= votes.max(axis=0) + slack).all()


@pytest.mark.parametrize("attacker", [2, 5, 8])
def test_nan_on_all_honest_members_outvotes_an_attacker(exchange, attacker):
    copies = [[np.full(4, rank % 3, np.float32)] for rank in range(9)]
    for rank in (2, 5, 8):
        copies[rank][0][:] = np.nan  # group 2 overflows together; one rank pretends it did not
    copies[attacker][0][:] = 3.0
    outcomes, reports = exchange_all(
        Detox(outer="mean", exchange=exchange, one_round_bytes=0), [copies]
    )
    assert layout_of(*copies[0]).typed(outcomes[4][0].update)[0].tolist() == [0.5] * 4
    assert (reports[0].dissents, reports[0].non_finite) == ({attacker: 1}, {2: 1})


def test_the_update_is_not_finite_when_most_votes_are_not(exchange):
    copies = [[np.full(4, rank % 3, np.float32)] for rank in range(9)]
    for rank in (0, 3, 6, 1, 4, 7):
        copies[rank][0][1] = np.inf
    outcomes, reports = exchange_all(Detox(exchange=exchange, one_round_bytes=0), [copies])
    assert np.isnan(layout_of(*copies[0]).typed(outcomes[0][0].update)[0]).all()
    assert (reports[3].dissents, reports[3].non_finite) == ({}, {0: 1, 1: 1})


def test_half_of_the_votes_may_be_left_out(exchange):
    copies = [[np.full(4, rank % 2, np.float32)] for rank in range(6)]
    for rank in (0, 2, 4):
        copies[rank][0][1] = np.inf
    outcomes, reports = exchange_all(Detox(exchange=exchange, one_round_bytes=0), [copies])
    assert layout_of(*copies[0]).typed(outcomes[0][0].update)[0].tolist() == [1.0] * 4
    assert reports[3].non_finite == {0: 1}


def test_liars_are_named_though_groups_are_not_in_the_order_of_their_leaders(exchange):
    detox = Detox(placement="random", exchange=exchange, one_round_bytes=0)
    groups = detox.plan(9).groups
    assert list(groups.members) != sorted(groups.members)
    copies = [[np.full(4, groups.of(rank), np.float32)] for rank in range(9)]
    copies[4][0][:] = 7
    _, reports = exchange_all(detox, [copies])
    assert [report.dissents for report in reports] == [{4: 1}] * 9


def test_centered_clipping_keeps_its_centre_and_forgets_no_step_to_nan(exchange):
    detox = Detox(
        group_size=1, outer=CenteredClipping(radius=0.5), exchange=exchange, one_round_bytes=0
    )
    first = [[np.array([4.0 + rank], np.float32)] for rank in range(3)]
    poison = [[np.array([np.nan], np.float32)] for _ in range(3)]
    outcomes, _ = exchange_all(detox, [first, first, poison, first])
    layout = layout_of(*first[0])
    updates = [layout.typed(outcome.update)[0].item() for outcome in outcomes[1]]
    assert updates[0] == 0.5
    assert updates[1] == 1.0
    assert np.isnan(updates[2])
    assert updates[3] == 1.5


def test_a_centre_is_given_up_when_the_parameters_change(exchange):
    plan = Detox(
        group_size=1, outer=CenteredClipping(radius=0.5), exchange=exchange, one_round_bytes=0
    ).plan(3)

    def program(collectives):
        engine = Engine(plan, collectives)
        updates = []
        for length in (2, 2, 5):
            values = np.full(length, 4.0)
            layout = layout_of(values)
            updates.append(layout.typed(engine.exchange(layout.pack([values]), layout).update)[0])
        return [np.linalg.norm(update) for update in updates]

    for norms in InProcessCluster(3).run(program):
        assert norms == pytest.approx([0.5, 1.0, 0.5])


def test_ranks_with_different_parameters_all_hear_which(exchange):
    plan = Detox(exchange=exchange, one_round_bytes=0).plan(6)

    def program(collectives):
        buffers = [np.zeros(3), np.zeros(3, np.float32)][: 2 if collectives.rank == 4 else 1]
        layout = layout_of(*buffers)
        Engine(plan, collectives).exchange(layout.pack(buffers), layout)

    failing_everywhere(
        program, 6, RanksDisagree, r"rank 0 has no parameter where rank 4 has p1 \[3\] float32"
    )


def test_ranks_in_different_steps_all_hear_it(exchange):
    plan = Detox(exchange=exchange, one_round_bytes=0).plan(6)

    def program(collectives):
        engine = Engine(plan, collectives)
        engine.history.step = int(collectives.rank == 2)
        layout = layout_of(np.zeros(3))
        engine.exchange(layout.pack([np.zeros(3)]), layout)

    failing_everywhere(program, 6, RanksDisagree, r"different steps: \[0, 0, 1, 0, 0, 0\]")


def test_a_rank_that_does_not_take_part_ends_the_wait(exchange):
    plan = Detox(exchange=exchange, one_round_bytes=0).plan(6)
    layout = layout_of(np.zeros(3))

    def program(collectives):
        if collectives.rank == 5:
            return True
        with pytest.raises(ExchangeTimeout, match=r"ranks \[5\] did not take part"):
            Engine(plan, collectives).exchange(layout.pack([np.zeros(3)]), layout)
        return True

    assert InProcessCluster(6, timeout=0.5).run(program) == [True] * 6


def test_an_exception_on_one_rank_is_the_one_that_is_raised(exchange):
    plan = Detox(exchange=exchange, one_round_bytes=0).plan(6)
    layout = layout_of(np.zeros(3))

    def program(collectives):
        if collectives.rank == 5:
            raise KeyError("rank 5 broke")
        Engine(plan, collectives).exchange(layout.pack([np.zeros(3)]), layout)

    with pytest.raises(KeyError, match="rank 5 broke"):
        InProcessCluster(6).run(program)


@pytest.mark.parametrize(
    "tamper", [lambda part: part ^ 1, lambda part: part | -1], ids=["one bit", "to NaN"]
)
@pytest.mark.parametrize("outer", ["median", "multi_krum", "caf"])
@pytest.mark.parametrize("witnesses", [0, 1, 2])
def test_a_sender_whose_slice_is_not_what_it_fingerprinted_is_replaced_and_named(
    outer, tamper, witnesses
):
    detox = Detox(
        group_size=3, outer=outer, exchange="sharded", one_round_bytes=0, witnesses=witnesses
    )
    plan = detox.plan(9)
    layout = layout_of(np.zeros(50, np.float32))
    rng = np.random.default_rng(5)
    honest = [rng.normal(size=50).astype(np.float32) for _ in plan.groups.members]

    def program(collectives):
        seam: Any = collectives
        if collectives.rank in (4, 5):
            seam = Tampering(collectives, tamper)
        engine = Engine(plan, seam)
        copy = layout.pack([honest[plan.groups.of(collectives.rank)]])
        updates = [engine.exchange(copy, layout).update for _ in range(3)]
        return updates, engine.ledger.report()

    fair, _ = exchange_all(detox, [[[honest[plan.groups.of(rank)]] for rank in range(9)]])
    for updates, report in InProcessCluster(9).run(program):
        for update in updates:
            assert np.array_equal(update, fair[0][0].update)
        # Once named, they are not asked again, and so cannot be caught again.
        assert report.dissents == {4: 1, 5: 1}

"""The vote with a tolerance: what it still promises when honest ranks differ by noise."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS, by_name
from horovod_detox.attacks import ATTACKS
from horovod_detox.attacks import by_name as attack_by_name
from horovod_detox.drill import CopyDrill, stack_numbers
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.control import ENTROPY, RECORD, RanksDisagree
from horovod_detox.exchange.cut import cut
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority
from horovod_detox.history import History
from measuring.traffic import Traffic
from tests.attacks.scenes import ELSEWHERE
from tests.cluster import Tampering, exchange_all, failing_everywhere, layout_of
from tests.vote.test_distances import distance, is_close

NOISE = 1e-6
TOLERANCE = 1e-5


# The vote.


# The exchange.


def noisy(groups, honest, rng, noise=NOISE):
    """Give every rank its group's buffers, each with noise of relative length `noise` at most."""
    return [[add_noise(buffer, rng, noise) for buffer in honest[g]] for g in owners(groups)]


def add_noise(buffer, rng, noise):
    wide = buffer.astype(np.float64)
    direction = rng.standard_normal(wide.shape)
    direction *= 0.9 * noise * np.linalg.norm(wide) / np.linalg.norm(direction)
    return (wide + direction).astype(buffer.dtype)


def owners(groups):
    return [groups.of(rank) for rank in range(groups.world_size)]


def rule_of(outer):
    return by_name(outer, radius=1.0) if outer == "centered_clipping" else outer


@pytest.mark.parametrize("outer", sorted(AGGREGATORS))
def test_the_exchange_equals_the_reference_in_every_bit(outer):
    momentum = 0.9 if outer in ("median", "krum") else 0.0
    detox = Detox(3, outer=rule_of(outer), momentum=momentum, tolerance=1e-3)
    plan = detox.plan(16)
    groups = plan.groups
    assert {len(members) for members in groups.members} == {3, 4}
    rng = np.random.default_rng(1)
    honest = [
        [rng.normal(size=n).astype(t) for n, t in ((33, np.float32), (9, np.float64))]
        for _ in groups.members
    ]
    steps = [noisy(groups, honest, rng, 1e-4) for _ in range(2)]
    for copies in steps:
        copies[3][0] *= -5
        copies[7][1][2] = np.nan
        copies[groups.members[4][0]][0][0] += 1
        copies[groups.members[4][1]][0][0] -= 1  # group 4 has no majority
    layout, history = layout_of(*steps[0][0]), History(plan)
    outcomes, reports = exchange_all(detox, steps)
    for step, copies in enumerate(steps):
        expected = aggregate_copies(
            history.plan_now(),
            layout.buffers,
            [layout.pack(copy) for copy in copies],
            history.memory(layout),
        )
        history.record(expected, layout)
        for ours in outcomes:
            assert np.array_equal(ours[step].update, expected.update)
            assert ours[step].verdict == expected.verdict
    assert reports[0].dissents == {3: 2, 7: 2}
    assert reports[0].abstentions == {4: 2}
    assert reports == [history.ledger.report()] * 16


@settings(max_examples=25)
@given(st.data())
def test_without_noise_it_does_as_the_vote_on_bits(data):
    r = data.draw(st.integers(1, 5))
    p = data.draw(st.integers(max(r, 2), 16))
    outer = data.draw(st.sampled_from(["mean", "median", "geometric_median", "meamed"]))
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    bits = Detox(r, outer=outer)
    groups = bits.plan(p).groups
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    width = data.draw(st.integers(1, 40))
    honest = [rng.normal(size=width).astype(dtype) for _ in groups.members]
    copies = [[honest[group].copy()] for group in owners(groups)]
    liars = [rank for ranks in groups.members for rank in ranks[: (len(ranks) - 1) // 2]]
    for liar in liars:  # one of them hides far inside the tolerance
        copies[liar][0] *= 1.001 if liar == 0 else rng.choice([-1, 100])
    layout = layout_of(*copies[0])
    expected = aggregate_copies(
        bits.plan(p), layout.buffers, [layout.pack(copy) for copy in copies]
    )
    assert set(expected.verdict.dissenters) <= {*liars}
    outcomes, _ = exchange_all(replace(bits, tolerance=0.01), [copies])
    for (ours,) in outcomes:
        assert np.array_equal(ours.update, expected.update)
        assert ours.verdict.dissenters == tuple(sorted(rank for rank in liars if rank))


LIARS = (1, 5, 6)  # one in each of the groups (0, 3, 6), (1, 4, 7), (2, 5, 8)
WIDTH = 200


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - ELSEWHERE))
def test_liars_among_noisy_ranks_are_named_and_move_the_vote_by_no_more_than_the_noise(name):
    detox, liars = Detox(3, outer="mean", tolerance=TOLERANCE), LIARS
    if name == "mimic":
        liars = (1, 8)  # they mimic rank 0: in its own group that would be no lie
    attack = attack_by_name(name, ranks=liars)
    plan = detox.plan(9)
    groups, layout = plan.groups, layout_of(np.zeros(WIDTH, np.float32))
    drills = [CopyDrill(attack, rank, plan) for rank in range(9)]
    rng, steps, truths = np.random.default_rng(7), [], []
    for step in range(2):
        truth = [[rng.normal(size=WIDTH).astype(np.float32)] for _ in groups.members]
        copies = [layout.pack(copy) for copy in noisy(groups, truth, rng)]
        everyone = stack_numbers(layout, copies) if attack.omniscient else None
        for rank in liars[:1] if attack.omniscient else liars:
            copies[rank] = drills[rank].corrupt(step, copies[rank], layout, everyone)
        for rank in liars if attack.omniscient else ():  # they all send the same
            copies[rank] = copies[liars[0]]
        steps.append([layout.typed(copy) for copy in copies])
        truths.append([buffers[0] for buffers in truth])
    outcomes, reports = exchange_all(detox, steps)
    assert all(report == reports[0] for report in reports)
    for step, (copies, truth) in enumerate(zip(steps, truths, strict=True)):
        outcome = outcomes[0][step]
        assert all(np.array_equal(ours[step].update, outcome.update) for ours in outcomes)
        assert outcome.verdict.dissenters == tuple(
            liar
            for liar in liars
            if not any(
                is_close(copies[liar][0], copies[rank][0], TOLERANCE)
                for rank in groups.members[groups.of(liar)]
                if rank not in liars
            )
        )
        update = layout.typed(outcome.update)[0]
        bound = 3 * NOISE * max(np.linalg.norm(vector) for vector in truth)
        assert distance(update, np.mean(truth, axis=0, dtype=np.float64)) <= bound
    # A bit at the lower end, and a last place, are within the noise; the first copy is not stale.
    named = {"ulp": 0, "bit_flip": None, "stale": 1}.get(name, 2)
    if named is not None:
        assert reports[0].dissents == (dict.fromkeys(liars, named) if named else {})
    assert reports[0].abstentions == {}


@pytest.mark.parametrize("outer", ["mean", "median", "bulyan", "geometric_median"])
def test_the_same_noise_without_a_tolerance(outer):
    """Show what the tolerance is for: no group has a majority, or honest ranks are accused."""
    rng = np.random.default_rng(7)
    detox = Detox(3, outer=outer)
    groups = detox.plan(9).groups
    truth = [[rng.normal(size=WIDTH).astype(np.float32)] for _ in groups.members]
    copies = noisy(groups, truth, rng)
    layout = layout_of(*copies[0])

    def program(collectives):
        engine = Engine(detox.plan(9), collectives)
        engine.exchange(layout.pack(copies[collectives.rank]), layout)

    failing_everywhere(program, 9, NoMajority, "do not compute the same bits")
    copies = [
        copies[rank] if rank == 4 else [truth[group][0]]
        for rank, group in enumerate(owners(groups))
    ]
    _, reports = exchange_all(replace(detox, outer="median"), [copies])
    assert reports[0].dissents == {4: 1}
    _, reports = exchange_all(replace(detox, outer="median", tolerance=TOLERANCE), [copies])
    assert reports[0].dissents == {}


def test_noise_beyond_the_tolerance_is_told():
    plan = Detox(tolerance=TOLERANCE).plan(6)
    layout = layout_of(np.zeros(9))

    def program(collectives):
        values = np.full(9, 1 + 1e-4 * collectives.rank)
        Engine(plan, collectives).exchange(layout.pack([values]), layout)

    failing_everywhere(program, 6, NoMajority, "do not compute the same within tolerance = 1e-05")


@pytest.mark.parametrize("times_tolerance", [0.5, 0.99, 1.01, 3])
def test_an_attack_inside_the_tolerance_is_not_named_and_moves_the_vote_by_no_more_than_the_noise(
    times_tolerance,
):
    detox = Detox(3, outer="mean", tolerance=TOLERANCE)
    groups = detox.plan(9).groups
    rng = np.random.default_rng(0)
    truth = [[rng.normal(size=WIDTH)] for _ in groups.members]
    copies = noisy(groups, truth, rng, noise=1e-9)
    for rank in groups.leaders:  # the lowest ranks: equals would be decided in their favour
        copies[rank][0] = truth[groups.of(rank)][0] * (1 + times_tolerance * TOLERANCE)
    outcomes, reports = exchange_all(detox, [copies])
    named = groups.leaders if times_tolerance > 1 else ()
    assert reports[4].dissents == dict.fromkeys(sorted(named), 1)
    assert all(vote.winners != (rank,) for rank in named for vote in outcomes[0][0].verdict.votes)
    update = layout_of(*copies[0]).typed(outcomes[0][0].update)[0]
    fair = np.mean([buffers[0] for buffers in truth], axis=0)
    assert distance(update, fair) <= 3e-9 * max(np.linalg.norm(b[0]) for b in truth)


def test_a_group_votes_with_one_whole_copy():
    """Weaker than the vote on bits, which masks faults in different slices of two members."""
    copies = [[np.arange(60, dtype=np.float32) + rank % 2] for rank in range(6)]
    copies[0][0][59] = -1
    copies[4][0][0] = -1
    outcomes, reports = exchange_all(Detox(outer="mean", tolerance=TOLERANCE), [copies])
    update = layout_of(*copies[0]).typed(outcomes[5][0].update)[0]
    assert np.array_equal(update, np.arange(60) + np.float32(1))
    assert (reports[0].dissents, reports[0].abstentions) == ({}, {0: 1})


def test_a_group_that_overflows_together_is_left_out_and_nobody_is_accused():
    copies = [[np.full(40, rank % 3, np.float32)] for rank in range(9)]
    copies[2][0][3], copies[8][0][39] = np.nan, np.inf  # of group 2; rank 5 pretends not to
    outcomes, reports = exchange_all(Detox(outer="mean", tolerance=TOLERANCE), [copies])
    layout = layout_of(*copies[0])
    for (outcome,), report in zip(outcomes, reports, strict=True):
        assert layout.typed(outcome.update)[0].tolist() == [0.5] * 40
        assert (report.dissents, report.non_finite) == ({5: 1}, {2: 1})
    for rank in (0, 3, 6):
        copies[rank][0][rank] = np.inf
    outcomes, reports = exchange_all(Detox(outer="mean", tolerance=TOLERANCE), [copies])
    for outcome, *_ in outcomes:
        assert np.isnan(layout.typed(outcome.update)[0]).all()
        assert not outcome.is_finite


def test_who_sends_an_owner_something_else_is_named_at_once():
    plan = Detox(outer="median", tolerance=TOLERANCE).plan(9)
    layout = layout_of(np.zeros(50, np.float32))
    values = np.random.default_rng(5).normal(size=(3, 50)).astype(np.float32)

    def program(collectives):
        seam: Any = collectives
        if collectives.rank == 4:
            seam = Tampering(collectives, lambda part: part ^ (1 << 62))
        engine = Engine(plan, seam)
        copy = layout.pack([values[plan.groups.of(collectives.rank)]])
        return engine.exchange(copy, layout).update, engine.ledger.report().dissents

    for update, dissents in InProcessCluster(9).run(program):
        assert np.array_equal(layout.typed(update)[0], np.median(values, axis=0))
        assert dissents == {4: 1}


def test_ranks_with_different_parameters_all_hear_which():
    plan = Detox(tolerance=TOLERANCE).plan(6)

    def program(collectives):
        values = np.zeros(3 + 9 * (collectives.rank == 4))
        layout = layout_of(values)
        Engine(plan, collectives).exchange(layout.pack([values]), layout)

    failing_everywhere(program, 6, RanksDisagree, r"rank 0 has p0 \[3\] .* rank 4 has p0 \[12\]")


@pytest.mark.parametrize(("p", "r"), [(6, 3), (16, 3), (10, 5)])
def test_a_rank_sends_what_it_sends_in_allreduce_and_the_distances(p, r):
    plan = Detox(r, outer="median", tolerance=TOLERANCE).plan(p)
    width = 500 * p  # small enough for a single round without a tolerance
    layout = layout_of(np.zeros(width))

    def program(collectives):
        counter = Traffic()
        engine = Engine(plan, counter.wrap(lambda: collectives)())
        engine.exchange(layout.pack([np.ones(width)]), layout)
        return counter.sent

    facts = 8 * (p - 1) * (len(plan.groups) * max(map(len, plan.groups.members)) ** 2)
    facts += (2 * RECORD.itemsize + ENTROPY) * (p - 1)  # the first exchange begins with them
    allreduce = 2 * 8 * width * (p - 1) / p
    assert InProcessCluster(p).run(program) == [allreduce + facts] * p


def test_a_large_gradient_goes_as_a_whole():
    plan = Detox(tolerance=TOLERANCE, overlap_bytes=64).plan(6)

    def program(collectives):
        return Engine(plan, collectives).parts(layout_of(np.zeros(900)))

    assert InProcessCluster(6).run(program) == [cut(900, 6)] * 6


def test_the_update_takes_the_memory_that_is_given_and_the_copy_is_left_as_it_is():
    plan, layout = Detox(tolerance=TOLERANCE).plan(6), layout_of(np.zeros(120))

    def program(collectives):
        copy, update = layout.pack([np.ones(120)]), np.full(layout.words, -1)
        outcome = Engine(plan, collectives).exchange(copy, layout, update)
        return outcome.update is update and set(copy.view(float)) == set(update.view(float)) == {1}

    assert InProcessCluster(6).run(program) == [True] * 6

"""The planner: counted exactly, the bounds those of Detox, the bytes those of a real exchange."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import TooFewVotes
from horovod_detox.attacks.placement import place
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.planning.advice import advise, least_ranks
from horovod_detox.planning.capture import lost_at_random, lost_to
from horovod_detox.planning.comparison import Job, compare
from horovod_detox.registry import parse
from horovod_detox.vote.capture import faulty_votes, silenced_groups
from horovod_detox.vote.groups import form_groups
from horovod_detox.vote.majority import judge
from measuring.traffic import Traffic
from tests.cluster import layout_of


def sizes_of(p: int, r: int) -> list[int]:
    return [len(members) for members in form_groups(p, r).members]


def redundancy_of(comparison, group_size):
    return next(r for r in comparison.redundancies if r.group_size == group_size)


def test_the_case_of_the_paper():
    redundancy = redundancy_of(compare(Job(45, 5)), 3)
    none = 3**5 * comb(15, 5) / comb(45, 5)
    two = comb(15, 2) * (3**2 * 39 + 2 * 3) / comb(45, 5)
    assert redundancy.captured == pytest.approx((none, 1 - none - two, two))
    # Draws gave 59.6, 37.3 and 3.0 %; the exact numbers are 59.7, 37.2 and 3.1.
    assert redundancy.captured == pytest.approx((0.596, 0.373, 0.030), abs=0.002)
    assert redundancy.captured_at_worst == 2
    assert redundancy.bad_votes == pytest.approx(15 * (3 * comb(42, 3) + 42 * 41 / 2) / comb(45, 5))


def test_two_faulty_ranks_of_15_are_in_different_groups_in_86_percent_of_cases():
    assert lost_at_random([3] * 5, 2) == {(0, 0): Fraction(6, 7), (1, 0): Fraction(1, 7)}


@pytest.mark.parametrize(
    ("p", "q", "r"), [(45, 5, 3), (45, 12, 3), (46, 7, 3), (16, 5, 3), (47, 9, 5), (23, 6, 4)]
)
def test_counting_agrees_with_draws(p, q, r):
    draws = 5000
    sizes = sizes_of(p, r)
    member = np.repeat(np.eye(len(sizes)), sizes, axis=0)  # (p, k)
    order = np.random.default_rng(p * q).random((draws, p)).argsort(axis=1)
    faulty = (order < q) @ member  # (draws, k)
    captured, ties = (2 * faulty > sizes).sum(axis=1), (2 * faulty == sizes).sum(axis=1)
    drawn = Counter(zip(captured.tolist(), ties.tolist(), strict=True))
    counted = lost_at_random(sizes, q)
    assert drawn.keys() <= counted.keys()
    for lost, share in counted.items():
        sigma = sqrt(share * (1 - share) / draws)
        assert abs(drawn[lost] / draws - share) <= 4 * sigma + 1 / draws


def test_counting_agrees_with_the_placement_of_attacks():
    groups, steps = form_groups(45, 3), 1000
    drawn = Counter(lost_to(place("random:5", step, groups, 0), groups) for step in range(steps))
    for lost, share in lost_at_random(sizes_of(45, 3), 5).items():
        assert abs(drawn[lost] / steps - share) <= 4 * sqrt(share * (1 - share) / steps)


@pytest.mark.parametrize(("p", "r"), [(1, 1), (6, 1), (7, 2), (8, 3), (9, 3), (10, 4)])
def test_counting_agrees_with_the_vote_on_every_placement(p, r):
    groups = form_groups(p, r)
    for q in range(p + 1):
        counted = lost_at_random([*map(len, groups.members)], q)
        voted = Counter(outcome_of_vote(groups, faulty) for faulty in combinations(range(p), q))
        assert counted == {lost: Fraction(n, comb(p, q)) for lost, n in voted.items()}


def outcome_of_vote(groups, faulty):
    copies = np.zeros((groups.world_size, 1, 2), np.int64)
    copies[list(faulty)] = 1  # they collude
    verdict = judge(groups, copies)
    captured = sum(winner in faulty for (winner,) in verdict.winners.values())
    assert lost_to(faulty, groups) == (captured, len(verdict.abstentions))
    return captured, len(verdict.abstentions)


@pytest.mark.parametrize(("p", "q", "r"), [(45, 5, 3), (46, 40, 3), (23, 11, 5), (17, 9, 1)])
def test_the_worst_case_takes_the_smallest_groups_first(p, q, r):
    worst = max(captured for captured, _ in lost_at_random(sizes_of(p, r), q))
    left = q
    for i, size in enumerate(sorted(sizes_of(p, r))):
        left -= size // 2 + 1
        if left < 0:
            assert worst == i
            break
    assert worst <= min(p // r, faulty_votes(q, form_groups(p, r)))
    assert lost_to(place(f"concentrated:{q}", 0, form_groups(p, r), 0), form_groups(p, r))[0] == (
        worst
    )


@pytest.mark.parametrize(("p", "q"), [(7, 2), (8, 3), (15, 6), (16, 1)])
def test_bounds_are_those_of_detox(p, q, monkeypatch):
    monkeypatch.setattr(Detox, "_advice", lambda self, ranks: "Advice is slow.")
    comparison = compare(Job(p, q))
    assert {setting.fits for setting in comparison.candidates} == {True, False}
    for setting in comparison.candidates:
        detox = Detox(setting.group_size, setting.inner, setting.outer, setting.buckets)
        assert setting.fits == is_accepted(replace(detox, num_byzantine=q), p)
        if not setting.fits:
            with pytest.raises(ValueError, match="Advice is slow") as caught:
                replace(detox, num_byzantine=q).plan(p)
            assert str(caught.value).startswith(setting.reason)
        groups = form_groups(p, setting.group_size)
        for other in range(p):
            stands = setting.stands is not None and faulty_votes(other, groups) <= setting.stands
            accepted = is_accepted(replace(detox, num_byzantine=other), p)
            assert stands == accepted or (stands and [*silenced_groups(other, groups)])


def is_accepted(detox, p):
    try:
        detox.plan(p)
    except ValueError:
        return False
    return True


def test_what_rules_hold_at_random():
    comparison = compare(Job(45, 12))
    for setting in comparison.candidates:
        captured = redundancy_of(comparison, setting.group_size).captured
        assert setting.holds >= float(setting.fits)
        if setting.group_size == 3:  # no ties
            assert setting.holds == pytest.approx(sum(captured[: (setting.stands or 0) + 1]))


def test_a_group_that_ties_has_no_vote_to_hold():
    holds = {
        (q, setting.outer): setting.holds
        for q in (3, 4)
        for setting in compare(Job(8, q)).candidates
        if setting.group_size == 3 and not setting.buckets
    }
    assert holds[3, "mean"] == pytest.approx(48 / 56)  # two groups of 4: one abstains
    assert holds[4, "mean"] == 0  # both abstain, or one is captured
    assert redundancy_of(compare(Job(8, 3)), 3).abstention == pytest.approx(48 / 56)
    assert redundancy_of(compare(Job(8, 3)), 3).intact == 0


def test_ties_can_leave_too_few_votes_for_a_rule_that_stands_what_is_captured():
    (bulyan,) = (
        s for s in compare(Job(18, 3)).candidates if (s.group_size, s.outer) == (5, "bulyan")
    )
    three_in_one_group = 3 * comb(6, 3) / comb(18, 3)
    assert bulyan.stands == 0  # faulty votes, of which there is none
    assert bulyan.reason.startswith(
        "num_byzantine = 3 ranks can leave 1 of 3 groups without a majority and capture 0: Bulyan"
    )
    assert bulyan.holds == pytest.approx(1 - three_in_one_group)
    groups = form_groups(18, 5)
    assert lost_to(groups.members[0][:3], groups) == (0, 1)
    with pytest.raises(TooFewVotes, match="2 votes"):
        Detox(5, outer="bulyan", num_byzantine=2).plan(18).rule_without([0])


@pytest.mark.parametrize(("p", "r"), [(6, 3), (7, 3), (9, 3), (10, 5), (5, 1)])
@pytest.mark.parametrize("width", [60, 30000])
def test_bytes_are_those_of_an_exchange(p, r, width):
    """Words that every rank receives, without facts about the copies."""
    width *= p
    layout = layout_of(np.zeros(width))

    def program(collectives):
        traffic = Traffic()
        engine = Engine(Detox(r).plan(p), traffic.watch(collectives))
        engine.exchange(layout.pack([np.zeros(width)]), layout)
        return np.sum([call.words for call in traffic.calls], axis=0)

    received = np.sum(InProcessCluster(p).run(program), axis=0)
    job = Job(p, 2, parameters=width, bytes_per_parameter=8)
    expected = redundancy_of(compare(job), r)
    assert set(received.tolist()) == {expected.received}
    if width > 60 * p:
        assert expected.of_allreduce == pytest.approx((p // r + p - 2) / (2 * (p - 1)))


def test_costs_of_redundancy():
    comparison = compare(Job(45, 5, parameters=11e6, batch_size=32))
    plain, tripled = comparison.redundancies[:2]
    assert (plain.batch, plain.compute, plain.of_allreduce) == (1440, 1.0, 1.0)
    assert (tripled.batch, tripled.compute, tripled.samples_per_rank) == (480, 3.0, 96.0)
    assert tripled.received == pytest.approx(44e6 * (1 + 1 / 3 - 2 / 45))
    assert tripled.leaders_received == 44e6 * (3 + 15 + 1)
    assert redundancy_of(compare(Job(7, 1)), 3).compute == 3.5


@pytest.mark.parametrize(("ranks", "measured"), [(4, 2.51), (6, 2.54), (9, 2.48), (12, 2.48)])
def test_memory_is_near_what_was_measured(ranks, measured):
    redundancy = redundancy_of(compare(Job(ranks, 1, parameters=1e7)), 3)
    assert redundancy.memory / 4e7 == pytest.approx(measured, abs=0.07)


def test_a_host_that_lies():
    losses = compare(Job(15, 2, hosts=tuple("aaaaabbbbbccccc"))).host_losses
    found = {(loss.group_size, loss.placement): loss for loss in losses}
    assert found[3, "spread"].captured == found[3, "spread"].abstaining == 0
    assert "mean" in found[3, "spread"].stood_by
    assert found[3, "packed"].captured == 2
    assert found[3, "packed"].stood_by == ("median", "geometric_median")
    assert found[1, "spread"].captured == found[1, "spread"].ranks == 5
    assert (1, "packed") not in found
    two = {loss.placement: loss for loss in compare(Job(8, 1, hosts=tuple("aaaabbbb"))).host_losses}
    assert (two["packed"].captured, two["packed"].abstaining, two["packed"].stood_by) == (1, 0, ())


def test_the_host_with_most_harm_is_reported():
    (loss,) = (
        loss
        for loss in compare(Job(9, 1, hosts=tuple("abbbbbccc"))).host_losses
        if (loss.group_size, loss.placement) == (3, "spread")
    )
    assert (loss.host, loss.ranks, loss.captured) == ("b", 5, 2)


@pytest.mark.parametrize(
    ("ranks", "byzantine", "phrases"),
    [
        (45, 0, ["You do not need DETOX: without", "3.0 times", "480 of 1440"]),
        (1, 0, ["You do not need DETOX: without"]),
        (
            9,
            1,
            [
                'Recommended: Detox(group_size=3, outer="mean", num_byzantine=1). 1 faulty rank '
                "cannot outvote a group of 3",
                "You do not need DETOX if an approximate update will do: "
                'Detox(group_size=1, outer="median", num_byzantine=1) tolerates 4 of 9',
            ],
        ),
        (
            45,
            5,
            [
                'Recommended: Detox(group_size=3, outer="median", num_byzantine=5). 5 faulty ranks '
                "capture at most 2 of 15 groups; this rule tolerates 7",
                "59.7 %",
                'Exact, at a price: Detox(group_size=11, outer="mean"',
                "11.2 times",
            ],
        ),
        (
            45,
            20,
            [
                "capture up to 10 of 15 groups, and the median tolerates 7",
                "in 91.4 % of cases",
                "it takes 63 ranks",
                "all ranks compute the same batch",
                "tolerates 22 of 45",
            ],
        ),
        (6, 2, ["Too few ranks for 2 faulty ones in groups of 3", "it takes 9 ranks"]),
        (18, 7, ["Too few ranks for 7 faulty ones in groups of 3"]),  # groups of 6 may tie
        (5, 2, ["2 faulty ranks cannot outvote a group of 5"]),
        (8, 4, ["4 faulty ranks of 8 are not a minority", "at least 9 ranks"]),
        (2, 2, ["at least 5 ranks"]),
    ],
)
def test_advice_has_numbers(ranks, byzantine, phrases):
    advice = "\n".join(advise(compare(Job(ranks, byzantine))))
    for phrase in phrases:
        assert phrase in advice


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 15])
def test_whatever_is_advised_is_accepted(ranks):
    for byzantine in range(ranks + 1):
        advice = advise(compare(Job(ranks, byzantine)))
        assert 1 <= len(advice) <= 3
        settings = [part.split(")")[0] for line in advice for part in line.split("Detox(")[1:]]
        assert bool(settings) == (0 < 2 * byzantine < ranks)
        for setting in settings:
            _, fields = parse(f"detox({setting})")
            assert fields["num_byzantine"] == byzantine
            Detox(**fields).plan(ranks)


@pytest.mark.parametrize(
    ("hosts", "phrase"),
    [
        ("aaaaabbbbbccccc", 'with group_size=3, placement="spread": no group loses its majority'),
        (
            "aaaaaabbbbbcccc",
            "a (6 ranks) captures 1 of 5 groups, which these rules tolerate: median",
        ),
        ("aaaaaaaabbbbbbb", "No group size here tolerates a whole host that lies: a has 8 of 15"),
    ],
)
def test_advice_about_hosts(hosts, phrase):
    assert phrase in advise(compare(Job(15, 1, hosts=tuple(hosts))))[-1]


@pytest.mark.parametrize(
    ("ranks", "byzantine", "outer"),
    [(45, 5, "median"), (45, 20, "median"), (10, 3, "bulyan"), (6, 2, "median"), (10, 4, "median")],
)
def test_least_ranks(ranks, byzantine, outer, monkeypatch):
    monkeypatch.setattr(Detox, "_advice", lambda self, ranks: "Advice is slow.")
    least = least_ranks(Job(ranks, byzantine), 3, outer)
    assert least > ranks
    assert least % 3 == 0
    detox = Detox(3, outer=outer, num_byzantine=byzantine)
    assert is_accepted(detox, least)
    assert not any(is_accepted(detox, fewer) for fewer in range(ranks - ranks % 3 + 3, least, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranks": 0, "byzantine": 0}, "ranks = 0: it must be at least 1"),
        ({"ranks": 3, "byzantine": 4}, "byzantine = 4: it must be from 0 to the number of ranks"),
        ({"ranks": 3, "byzantine": -1}, "byzantine = -1"),
        ({"ranks": 3, "byzantine": 1, "parameters": float("nan")}, "parameters = nan"),
        ({"ranks": 3, "byzantine": 1, "bytes_per_parameter": 0}, "bytes_per_parameter = 0"),
        ({"ranks": 3, "byzantine": 1, "batch_size": 0}, "batch_size = 0"),
        ({"ranks": 3, "byzantine": 1, "hosts": ("a",)}, "the hosts have 1 slots for 3 ranks"),
    ],
)
def test_an_impossible_job_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Job(**fields)

"""Transient faults: the formula against every course of events of small jobs."""

from itertools import product

import pytest

from horovod_detox.planning.advice import advise
from horovod_detox.planning.comparison import Job, compare
from horovod_detox.planning.transients import Faults, chance_of_loss, endurance
from horovod_detox.vote.groups import form_groups


def by_brute_force(sizes: list[int], rate: float, steps: int, window: int) -> float:
    """Add up how likely each course of events is in which some team has no majority."""
    members = [i for i, size in enumerate(sizes) for _ in range(size)]
    total = 0.0
    for hits in product([False, True], repeat=len(members) * steps):
        wrong: set[int] = set()
        is_lost = False
        for step in range(steps):
            if step % window == 0:
                wrong = set()
            wrong |= {r for r in range(len(members)) if hits[step * len(members) + r]}
            for i, size in enumerate(sizes):
                is_lost |= 2 * sum(members[rank] == i for rank in wrong) >= size
        total += is_lost * rate ** sum(hits) * (1 - rate) ** (len(hits) - sum(hits))
    return total


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 9])
@pytest.mark.parametrize(
    ("sizes", "steps"), [([3], 4), ([1, 2], 4), ([4], 3), ([1, 3], 3), ([5], 2)], ids=str
)
def test_the_formula_agrees_with_every_course_of_events(sizes, steps, window, rate):
    expected = by_brute_force(sizes, rate, steps, window)
    assert chance_of_loss(sizes, rate, steps, window) == pytest.approx(expected, rel=1e-12)


def test_the_check_can_fail():
    assert by_brute_force([3], 0.5, 4, 1) != pytest.approx(by_brute_force([3], 0.5, 4, 2), rel=1e-3)


def test_small_and_large_chances_are_exact():
    """Two of three in one of n windows, and everything that is next to certain."""
    assert chance_of_loss([3], 1e-9, 10**6, 1) == pytest.approx(3e-18 * 10**6, rel=1e-6)
    assert chance_of_loss([3] * 10, 1e-9, 10**7, 100) == pytest.approx(10 * 3e-14 * 1e5, rel=1e-6)
    assert chance_of_loss([3], 0.9, 10**6, 10**6) == 1
    assert chance_of_loss([3], 0.9, 50, 10**6) == chance_of_loss([3], 0.9, 50, 50)
    assert str(chance_of_loss([3], 0.0, 10**6, 100)) == "0.0"


def test_healing_is_worth_more_the_sooner_it_comes():
    faults = Faults(1e-6, steps=10**5, scrub_every=100)
    found = endurance(faults, form_groups(9, 3), 3)
    assert found.within_scrub is not None
    assert found.at_once is not None
    assert found.stay > 100 * found.within_scrub > 1000 * found.at_once > 0
    everybody = endurance(faults, form_groups(9, 1), None)
    assert everybody.sizes == (9,)
    assert everybody.stay < found.stay
    alone = endurance(faults, form_groups(9, 1), 1)
    assert (alone.within_scrub, alone.at_once) == (None, None)


def test_the_job_is_told_what_healing_is_worth():
    job = Job(45, 5, faults=Faults(1e-7, steps=10**6, scrub_every=100))
    comparison = compare(job)
    assert [each.group_size for each in comparison.endurances] == [1, 3, 5, 7, 11, None]
    assert any(
        "its majority with a chance of 32.1 % if they stay, of 1 in 2.2e+04" in sentence
        for sentence in advise(comparison)
    )
    assert compare(Job(45, 5)).endurances == ()


@pytest.mark.parametrize("rate", [0.0, 1e-7])
def test_nobody_is_told_that_faults_need_nothing(rate):
    advice = advise(compare(Job(45, 0, faults=Faults(rate, 10**6, 100))))
    assert advice[0].startswith("You do not need DETOX") == (not rate)
    assert ("98.9 % of such jobs have at least one" in advice[0]) == bool(rate)

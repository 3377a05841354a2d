"""Who is faulty, and when: ranks, placements, steps and probability of an attack."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.attacks import ATTACKS, BitFlip, Mimic, Reverse, by_name
from horovod_detox.vote.groups import Groups, form_groups


def uniform_groups(num_groups: int, group_size: int) -> Groups:
    return form_groups(num_groups * group_size, group_size)


@st.composite
def uneven_groups(draw: st.DrawFn) -> Groups:
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=8))
    ranks = draw(st.permutations(range(sum(sizes))))
    parts = np.split(np.array(ranks), np.cumsum(sizes)[:-1])
    return Groups(tuple(tuple(sorted(part.tolist())) for part in parts))


@given(uneven_groups(), st.integers(0, 99), st.data())
def test_random_and_fixed_placements(groups, seed, data):
    count = data.draw(st.integers(0, groups.world_size))
    for placement in ("random", "fixed"):
        attack = Reverse(ranks=f"{placement}:{count}", seed=seed)
        for step in range(3):
            ranks = attack.faulty_ranks(step, groups)
            assert len(set(ranks)) == count
            assert set(ranks) <= set(range(groups.world_size))
            assert list(ranks) == sorted(ranks)
            assert ranks == attack.faulty_ranks(step, groups)


def test_random_changes_with_the_step_and_the_others_do_not():
    groups = uniform_groups(15, 3)
    for placement in ("random", "fixed", "spread", "concentrated"):
        attack = Reverse(ranks=f"{placement}:5")
        drawn = {attack.faulty_ranks(step, groups) for step in range(20)}
        assert len(drawn) == (20 if placement == "random" else 1)
        other = Reverse(ranks=f"{placement}:5", seed=1)
        assert other.faulty_ranks(0, groups) != attack.faulty_ranks(0, groups)


def test_random_takes_every_rank_equally_often():
    groups = uniform_groups(3, 3)
    attack = Reverse(ranks="random:2")
    counts = np.bincount([r for step in range(4500) for r in attack.faulty_ranks(step, groups)])
    assert (np.abs(counts - 1000) < 150).all()


@given(uneven_groups(), st.integers(0, 99), st.data())
def test_spread_takes_no_majority(groups, seed, data):
    room = sum((len(members) - 1) // 2 for members in groups.members)
    count = data.draw(st.integers(0, room))
    ranks = Reverse(ranks=f"spread:{count}", seed=seed).faulty_ranks(0, groups)
    assert len(set(ranks)) == count
    taken = [len(set(ranks) & set(members)) for members in groups.members]
    assert all(2 * n < len(members) for n, members in zip(taken, groups.members, strict=True))
    for n, members in zip(taken, groups.members, strict=True):
        assert n == (len(members) - 1) // 2 or max(taken) - n <= 1


@given(uneven_groups())
def test_spread_refuses_more_than_all_minorities(groups):
    room = sum((len(members) - 1) // 2 for members in groups.members)
    with pytest.raises(ValueError, match=rf"spread:{room + 1}: .* hold at most {room} ranks"):
        Reverse(ranks=f"spread:{room + 1}").check(groups)


@given(uneven_groups(), st.integers(0, 99), st.data())
def test_concentrated_captures_as_many_groups_as_possible(groups, seed, data):
    count = data.draw(st.integers(0, groups.world_size))
    ranks = set(Reverse(ranks=f"concentrated:{count}", seed=seed).faulty_ranks(0, groups))
    assert len(ranks) == count
    captured = sum(2 * len(ranks & set(members)) > len(members) for members in groups.members)
    affordable, spent = 0, 0
    for cost in sorted(len(members) // 2 + 1 for members in groups.members):
        spent += cost
        affordable += spent <= count
    assert captured == affordable


def test_concentrated_captures_one_group_for_two_ranks():
    groups = uniform_groups(15, 3)
    ranks = Reverse(ranks="concentrated:5").faulty_ranks(0, groups)
    assert sorted(np.bincount([groups.of(r) for r in ranks]).tolist())[-3:] == [1, 2, 2]


def test_placements_that_do_not_fit():
    groups = uniform_groups(3, 3)
    for placement in ("random", "fixed", "spread", "concentrated"):
        with pytest.raises(ValueError, match=f"{placement}:10 needs 10 ranks, but the job has 9"):
            Reverse(ranks=f"{placement}:10").check(groups)
    with pytest.raises(ValueError, match=r"groups of 3, 3, 3 hold at most 3 ranks"):
        Reverse(ranks="spread:4").check(groups)


@pytest.mark.parametrize("ranks", [(9,), (1, 20)])
def test_ranks_outside_the_job(ranks):
    attack = Reverse(ranks=ranks)
    for ask in (lambda g: attack.check(g), lambda g: attack.faulty_ranks(0, g)):
        with pytest.raises(ValueError, match="outside a job of 9 ranks"):
            ask(uniform_groups(3, 3))


def test_omniscient_attacks_need_an_honest_rank():
    groups = uniform_groups(3, 3)
    for name, attack in ATTACKS.items():
        if attack.omniscient:
            with pytest.raises(ValueError, match="9 faulty of 9 ranks leave no honest rank"):
                by_name(name, ranks="fixed:9").check(groups)
    with pytest.raises(ValueError, match="target 7 of 7 honest ranks"):
        Mimic(7, ranks="random:2").check(groups)
    Mimic(6, ranks="random:2").check(groups)


@pytest.mark.parametrize(
    ("steps", "active"),
    [(None, range(12)), ((3, 6), [3, 4, 5]), (range(2, 12, 4), [2, 6, 10]), ((0, 1), [0])],
)
def test_steps(steps, active):
    attack = Reverse(ranks=(4, 1), steps=steps)
    groups = uniform_groups(3, 3)
    faulty = [step for step in range(12) if attack.faulty_ranks(step, groups)]
    assert faulty == list(active)
    assert attack.faulty_ranks(faulty[0], groups) == (1, 4)


def test_probability_strikes_colluders_together_and_others_alone():
    groups = Groups(((0, 1, 2), (3, 4, 5)))
    strikes = {}
    for kind in (Reverse, BitFlip):
        attack = kind(ranks=(0, 1, 3), probability=0.3)
        seen = [attack.faulty_ranks(step, groups) for step in range(3000)]
        strikes[kind] = np.array([[r in ranks for r in (0, 1, 3)] for ranks in seen])
        np.testing.assert_allclose(strikes[kind].mean(axis=0), 0.3, atol=0.035)
    together, alone = strikes[Reverse], strikes[BitFlip]
    assert (together[:, 0] == together[:, 1]).all()
    assert (together[:, 0] & together[:, 2]).mean() == pytest.approx(0.09, abs=0.025)
    assert (alone[:, 0] & alone[:, 1]).mean() == pytest.approx(0.09, abs=0.025)
    assert Reverse(ranks=(0,), probability=0).faulty_ranks(0, groups) == ()

"""The vote: unanimous, majority, abstention; bits and nothing else decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.vote.fingerprint import fingerprint, slice_bounds
from horovod_detox.vote.groups import form_groups
from horovod_detox.vote.majority import Vote, judge, majority_vote


def vote_on(copies, parts=1):
    bounds = slice_bounds(len(copies[0]), parts)
    return majority_vote(range(len(copies)), np.stack([fingerprint(c, bounds) for c in copies]))


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=7))
def test_agrees_with_counting(copies):
    arrays = [np.array(copy, dtype=np.float32) for copy in copies]
    vote = vote_on(arrays, parts=3)
    columns = list(zip(*copies, strict=True))
    majority = [max(column, key=column.count) for column in columns]
    if any(2 * c.count(m) <= len(copies) for c, m in zip(columns, majority, strict=True)):
        assert vote == Vote(winners=None)
        return
    assert [copies[w][s] for s, w in enumerate(vote.winners or ())] == majority
    assert vote.dissenters == tuple(i for i, copy in enumerate(copies) if copy != majority)


def test_three_different_copies_abstain_and_nobody_is_blamed():
    # Boyer-Moore without a check of its candidate lets the last copy win.
    assert vote_on([np.array([1.0]), np.array([2.0]), np.array([3.0])]) == Vote(winners=None)


def test_two_equal_nans_outvote_an_attacker():
    # On float equality the two honest copies lose: NaN is not equal to itself.
    honest = np.array([np.nan, 1.0])
    assert vote_on([honest, np.array([5.0, 5.0]), honest.copy()]) == Vote((0,), (1,))


def test_bits_count_not_values():
    assert vote_on([np.array([0.0]), np.array([-0.0]), np.array([0.0])]).dissenters == (1,)


def test_half_is_not_a_majority():
    a, b = np.array([1.0]), np.array([2.0])
    assert vote_on([a, a, b, b]).winners is None


def test_flips_in_different_slices_of_two_members_are_both_outvoted():
    copies = [np.ones(4) for _ in range(3)]
    copies[0][0] = 7
    copies[2][3] = 7
    vote = vote_on(copies, parts=4)
    assert vote.dissenters == (0, 2)
    assert vote.winners == (1, 0, 0, 0)
    assert vote_on(copies, parts=1).winners is None


@given(st.integers(0, 50), st.integers(1, 60))
def test_slices_cover_everything_once(length, parts):
    bounds = slice_bounds(length, parts)
    assert len(bounds) == parts
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(length))
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_a_fingerprint_changes_with_any_bit(dtype):
    copy = np.arange(10).astype(dtype)
    bounds = slice_bounds(10, 3)
    before = fingerprint(copy, bounds)
    for bit in range(copy.nbytes * 8):
        flipped = copy.copy()
        flipped.view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
        changed = (fingerprint(flipped, bounds) != before).any(axis=1)
        element = bit // (8 * copy.itemsize)
        assert changed.tolist() == [start <= element < stop for start, stop in bounds]


def test_judge_takes_every_groups_vote():
    groups = form_groups(7, 3)
    table = np.zeros((7, 2, 2), dtype=np.int64)
    table[3, 1, 0] = 1
    table[0], table[2] = 5, 6  # two of four members: no majority
    verdict = judge(groups, table)
    assert verdict.dissenters == (3,)
    assert verdict.abstentions == (0,)
    assert list(verdict.winners) == [1]

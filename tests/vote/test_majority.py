"""The vote: the cases of cases.txt, and what holds for all."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.vote.distances import distances
from horovod_detox.vote.fingerprint import labels, slice_bounds
from horovod_detox.vote.groups import form_groups
from horovod_detox.vote.majority import Verdict, Vote, judge, majority_vote, merge, tolerant_vote

CASES = (Path(__file__).parent / "cases.txt").read_text()


def cases(section):
    """Return the rows of a section of cases.txt: what the members hold, winners, dissenters."""
    text = re.split(r"^(?=Bits\.|Numbers,|Parts\.)", CASES, flags=re.MULTILINE)[section]
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return [
        (given.strip(), numbers(winners), numbers(re.split(r"\s{2,}", dissenters.strip())[0]) or ())
        for given, winners, dissenters in rows[2:]
    ]


def numbers(text):
    """Read "0 2", "none" or "abstain"; the last two are nothing."""
    words = text.split()
    return None if words in (["none"], ["abstain"]) else tuple(map(int, words))


@pytest.mark.parametrize(("copies", "winners", "dissenters"), cases(1))
def test_cases(copies, winners, dissenters):
    arrays = [np.array([*map(ord, copy)], dtype=np.int64) for copy in copies.split()]
    assert vote_on(arrays, parts=len(arrays[0])) == Vote(winners, dissenters)


@pytest.mark.parametrize(("copies", "winners", "dissenters"), cases(2))
def test_cases_with_a_tolerance(copies, winners, dissenters):
    rows = [np.array([float(number)]) for number in copies.split()]
    vote = tolerant_vote(range(len(rows)), distances(rows), 0.125)
    assert vote == Vote(winners, dissenters)


@pytest.mark.parametrize(("parts", "winners", "dissenters"), cases(3))
def test_cases_in_parts(parts, winners, dissenters):
    votes = []
    for part in parts.split(";"):
        won, lost = part.split("/")
        votes.append(Verdict((Vote(numbers(won), numbers(lost) or ()),)))
    (vote,) = merge(votes).votes
    assert vote == Vote(winners, dissenters)


def test_all_cases_are_read():
    assert [len(cases(section)) for section in (1, 2, 3)] == [19, 11, 3]


def vote_on(copies, parts=1):
    bounds = slice_bounds(len(copies[0]), parts)
    words = [copy.view(f"i{copy.itemsize}") for copy in copies]
    return majority_vote(range(len(copies)), labels(words, bounds)[..., None])


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


def test_two_equal_nans_outvote_an_attacker():
    # On float equality the two honest copies lose: NaN is not equal to itself.
    honest = np.array([np.nan, 1.0])
    assert vote_on([honest, np.array([5.0, 5.0]), honest.copy()]) == Vote((0,), (1,))


def test_bits_count_not_values():
    assert vote_on([np.array([0.0]), np.array([-0.0]), np.array([0.0])]).dissenters == (1,)


@given(st.integers(0, 50), st.integers(1, 60))
def test_slices_cover_everything_once(length, parts):
    bounds = slice_bounds(length, parts)
    assert len(bounds) == parts
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(length))
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


def test_judge_takes_every_groups_vote():
    groups = form_groups(7, 3)
    table = np.zeros((7, 2, 2), dtype=np.int64)
    table[3, 1, 0] = 1
    table[0], table[2] = 5, 6  # two of four members: no majority
    verdict = judge(groups, table)
    assert verdict.dissenters == (3,)
    assert verdict.abstentions == (0,)
    assert list(verdict.winners) == [1]

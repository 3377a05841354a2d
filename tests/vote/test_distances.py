"""Distances between copies, and the vote with a tolerance."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_detox.vote.distances import distances
from horovod_detox.vote.majority import Vote, tolerant_vote
from tests.votes import draw


def vote_on(copies, tolerance=0.1):
    return tolerant_vote(range(len(copies)), distances(np.array(copies, float)), tolerance)


def is_close(a, b, tolerance):
    """Compare two copies as the documentation says it, in float64."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return not (np.isfinite(a).all() or np.isfinite(b).all())
    zero = np.zeros_like(a)
    return distance(a, b) <= tolerance * max(distance(a, zero), distance(b, zero))


def distance(a, b):
    return np.linalg.norm(np.float64(a) - np.float64(b))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distances_are_those_of_differences(dtype):
    rows = draw(4, 70_000, dtype=dtype)  # more than a block
    rows[1] = rows[0]
    rows[1, 69_000] = np.nextafter(rows[0, 69_000], dtype(9))
    rows[3] = np.finfo(dtype).max if dtype != np.float64 else 1e140
    exact = rows.astype(np.float64)
    expected = ((exact[:, None] - exact[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(expected, (exact**2).sum(axis=1))
    found = distances(rows)
    assert 0 < found[0, 1] < 1e-5
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    torch = pytest.importorskip("torch")
    on_device = distances([torch.from_numpy(row) for row in rows])
    np.testing.assert_allclose(on_device, expected, rtol=1e-11)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e150])
def test_a_row_that_cannot_be_aggregated_has_an_infinite_length(odd):
    rows = np.ones((3, 9))
    rows[1, 5] = odd
    assert np.isinf(distances(rows).diagonal()).tolist() == [False, True, False]


elements = st.sampled_from([0.0, 1.0, 1.065, 1.1, 1.15, -1.0, np.nan, np.inf])


@settings(max_examples=100)
@given(st.lists(st.tuples(elements, elements), min_size=1, max_size=7))
def test_agrees_with_the_definition(copies):
    tolerance = 0.0625
    copies = np.array(copies)
    near = np.array([[is_close(a, b, tolerance) for b in copies] for a in copies])
    stands = 2 * near.sum(axis=1) > len(copies)
    vote = vote_on(copies, tolerance)
    if not stands.any():
        assert vote == Vote(None)
        return
    assert vote.dissenters == tuple(np.flatnonzero(~stands))
    radii: dict[Any, Any] = {}
    for i in np.flatnonzero(stands):
        overflows = not np.isfinite(copies[i]).all()
        others = copies[near[i]]
        apart = np.zeros(len(others)) if overflows else [distance(copies[i], b) for b in others]
        radii[i] = np.sort(apart)[len(copies) // 2]
    assert vote.winners is not None
    assert vote.winners[0] in radii
    assert radii[vote.winners[0]] <= min(radii.values()) + 1e-9


@settings(max_examples=150)
@given(
    liars=st.integers(0, 3),
    more_honest=st.integers(1, 3),
    tolerance=st.sampled_from([0.01, 0.3]),
    seed=st.integers(0, 2**32),
)
def test_a_majority_that_is_close_bounds_the_vote_and_is_not_named(
    liars, more_honest, tolerance, seed
):
    """The guarantee, with liars near the edge of the tolerance, in two dimensions."""
    rng = np.random.default_rng(seed)
    honest, centre = liars + more_honest, np.array([1.0, 0.0])
    truth = centre + rng.uniform(-0.25, 0.25, (honest, 2)) * tolerance
    assert all(is_close(a, b, tolerance) for a in truth for b in truth)
    lies = centre + rng.uniform(-1, 1, (liars, 2)) * tolerance * rng.choice([1, 3, np.nan])
    order = rng.permutation(honest + liars)
    copies = np.concatenate([truth, lies])[order]
    vote = vote_on(copies, tolerance)
    assert vote.winners is not None
    noise = max(distance(a, b) for a in truth for b in truth)
    apart = [distance(copies[vote.winners[0]], a) for a in truth]
    assert min(apart) <= noise + 1e-12
    assert max(apart) <= 2 * noise + 1e-12
    for rank, copy in enumerate(copies):
        is_named = rank in vote.dissenters
        assert not (is_named and order[rank] < honest)
        assert is_named or any(is_close(copy, a, tolerance * (1 + 1e-9)) for a in truth)


def test_half_is_no_majority():
    assert vote_on([[1], [1], [2], [2]]) == Vote(None)
    assert vote_on([[1], [1], [1], [2]]) == Vote((0,), (3,))
    assert vote_on([[1], [2]]) == Vote(None)


def test_three_copies_far_apart_abstain_and_nobody_is_blamed():
    assert vote_on([[1], [2], [3]]) == Vote(None)


def test_closeness_need_not_go_on_from_copy_to_copy():
    row = [[1.0], [1.125], [1.25], [1.375], [1.5]]  # each is close to its neighbours only
    assert vote_on(row[:3], 0.125) == Vote((0,), ())
    assert vote_on(row, 0.125) == Vote((1,), (0, 4))


def test_ties_go_to_the_lowest_rank():
    assert vote_on([[1.01], [1], [1.02]]) == Vote((0,), ())
    assert vote_on([[7], [1], [1.01]]) == Vote((1,), (0,))


def test_zero_is_close_to_zero_alone():
    assert vote_on([[0, 0], [-0.0, 0], [1e-30, 0]], tolerance=0.99) == Vote((0,), (2,))
    assert vote_on([[1, 0], [0, 0], [1, 0]], tolerance=0.99) == Vote((0,), (1,))


def test_members_that_overflow_agree_though_not_in_the_same_elements():
    assert vote_on([[np.nan, 1], [1, 1], [1, np.inf]]) == Vote((0,), (1,))
    assert vote_on([[1, 1], [np.inf, 1], [1, 1]]) == Vote((0,), (1,))
    assert vote_on([[1, 1], [np.inf, 1], [2, 1]]) == Vote(None)


def test_the_centre_wins_and_not_who_stretches_the_tolerance():
    copies = [[1.09], [1.0], [1.001]]  # all close to each other
    assert vote_on(copies) == Vote((1,), ())

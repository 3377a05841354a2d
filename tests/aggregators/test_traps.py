"""Mistakes that other libraries make, and attacks that aim at numerics."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.aggregators import (
    MDA,
    AdaptiveClipping,
    Bucketing,
    CenteredClipping,
    Chain,
    Clipping,
    GeometricMedian,
    Krum,
    Median,
    TrimmedMean,
    by_name,
    finite_rows,
)
from tests import definitions
from tests.votes import RULE_CASES, bits, draw, few_examples

LARGEST = float(np.finfo(np.float32).max)
ROBUST = [
    (name, parameters)
    for name, parameters in RULE_CASES
    if name not in ("mean", "cge", "sign_majority", "centered_clipping") and "m" not in parameters
    and parameters.get("f") != 0
]  # fmt: skip


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("rule", [Median, TrimmedMean])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    data=st.data(),
    n=st.integers(3, 15),
    seed=st.integers(0, 10**6),
    lie=st.sampled_from([1e38, -1e38, LARGEST, -LARGEST, 0.0, 1e-30, "mixed", "own"]),
)
@few_examples
def test_stays_among_the_honest_values(rule, dtype, data, n, seed, lie):
    rng, f = np.random.default_rng(seed), data.draw(st.integers(1, (n - 1) // 2))
    votes = (0.1 * rng.integers(-1, 2, (n, 20))).astype(dtype)
    bad = rng.permutation(n)[:f]
    if lie == "mixed":
        votes[bad] = rng.choice([1e38, -1e38, 0], (f, 20))
    elif lie == "own":
        votes[bad] *= -100
    else:
        votes[bad] = lie
    honest = np.delete(votes, bad, axis=0)
    result = rule(f)(votes) if rule is TrimmedMean else rule()(votes)
    assert (result >= honest.min(axis=0)).all()
    assert (result <= honest.max(axis=0)).all()


@pytest.mark.parametrize("lie", [1e6, 1e20, 1e38, LARGEST])
@pytest.mark.parametrize(("name", "parameters"), ROBUST)
def test_huge_votes_do_not_carry_the_result_away(name, parameters, lie):
    votes = draw(15, 200)
    bad = [0, 7, 14][: parameters.get("f") or (3 if name != "bulyan" else 2)]
    votes[bad] = lie * np.array([1, 1, -1])[: len(bad), None]
    honest = np.delete(votes, bad, axis=0)
    result = by_name(name, **parameters)(votes)
    radius = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    assert np.linalg.norm(result - honest.mean(axis=0)) <= radius


@pytest.mark.parametrize("name", ["krum", "multi_krum", "mda", "faba", "geometric_median", "caf"])
def test_one_huge_vote_does_not_hide_another_bad_one(name):
    votes = draw(15, 200)
    honest = votes[2:]
    votes[0], votes[1] = 1e38, honest.mean(axis=0) + 50
    rule = by_name(name) if name == "geometric_median" else by_name(name, f=2)
    distance = np.linalg.norm(rule(votes) - honest.mean(axis=0))
    assert distance <= np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()


def test_huge_float64_votes_are_left_out_before_their_squares_overflow():
    votes = draw(15, 20, dtype=np.float64)
    votes[3], votes[4] = 1e300, -1e155
    assert finite_rows(votes).tolist() == [i not in (3, 4) for i in range(15)]
    assert bits(Krum(2)(votes)) == bits(Krum(2)(np.delete(votes, [3, 4], axis=0)))


def test_median_of_two_middle_values_does_not_overflow():
    votes = np.full((4, 3), LARGEST, np.float32)
    assert (Median()(votes) == np.float32(LARGEST)).all()


def test_median_of_an_even_number_is_between_the_middle_values():
    assert Median()(np.array([[0.0], [1.0], [2.0], [10.0]])) == 1.5


def test_trimmed_mean_is_not_total_minus_extremes():
    votes = np.array([[1e38], [-1e38], [1.0], [2.0], [3.0]], np.float32)
    assert TrimmedMean(1)(votes) == 2


def test_geometric_median_of_small_gradients_is_not_the_mean():
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((13, 1000))
    honest = 3e-3 * honest / np.linalg.norm(honest, axis=1, keepdims=True)
    attack = rng.standard_normal(1000)
    attack *= 6e-2 / np.linalg.norm(attack)
    votes = np.vstack([honest, attack, attack])
    assert cosine(votes.mean(axis=0), attack) > 0.98
    result = GeometricMedian()(votes)
    expected = definitions.geometric_median(votes, 2)
    np.testing.assert_allclose(result, expected, atol=1e-8)
    assert np.linalg.norm(result) < 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_geometric_median_follows_the_scale(scale):
    votes = draw(15, 50, dtype=np.float64)
    np.testing.assert_allclose(
        GeometricMedian()(scale * votes), scale * GeometricMedian()(votes), rtol=1e-6
    )


def test_geometric_median_ends_although_nearly_half_the_votes_are_huge():
    votes = draw(15, 100)
    votes[:7] = 1e38
    distance = np.linalg.norm(GeometricMedian()(votes) - votes[7:].mean(axis=0))
    assert distance < 10 * np.linalg.norm(votes[8] - votes[9])


def test_geometric_median_of_a_coinciding_majority_is_that_vote():
    votes = draw(15, 100)
    votes[5:13] = votes[5]
    assert bits(GeometricMedian()(votes)) == bits(votes[5])


def test_krum_with_a_large_common_component():
    votes = (1e4 + 1e-2 * draw(30, 500, dtype=np.float64)).astype(np.float32)
    expected = definitions.krum(votes.astype(np.float64), 8)
    assert bits(Krum(8)(votes)) == bits(expected.astype(np.float32))


def test_mda_searches_cleverly():
    votes = draw(45, 100)
    start = time.process_time()
    MDA(5)(votes)
    MDA(22)(votes)
    assert time.process_time() - start < 1


def test_centered_clipping_forgets_a_broken_centre():
    rule, votes = CenteredClipping(1.0), draw(15, 30)
    for broken in (np.nan, np.inf):
        previous = np.full(30, broken, np.float32)
        assert bits(rule(votes, previous)) == bits(rule(votes))


@pytest.mark.parametrize("iterations", [1, 4])
def test_centered_clipping_starts_at_the_previous_result(iterations):
    rule, votes = CenteredClipping(2.0, iterations), draw(15, 30, dtype=np.float64)
    previous = draw(1, 30, seed=9, dtype=np.float64)[0]
    expected = definitions.centered_clipping(votes, 7, 2.0, iterations, previous)
    np.testing.assert_allclose(rule(votes, previous), expected, atol=1e-9)
    with pytest.raises(ValueError, match="previous has the shape"):
        rule(votes, previous[:-1])


def test_centered_clipping_bounds_the_step():
    votes = draw(15, 30)
    previous = votes.mean(axis=0)
    votes[0] = LARGEST
    assert np.linalg.norm(CenteredClipping(1.0)(votes, previous) - previous) <= 1


def test_caf_gives_one_answer_and_always_one():
    votes = draw(15, 30)
    assert len({bits(by_name("caf", f=3)(votes)) for _ in range(5)}) == 1
    assert np.isfinite(by_name("caf", f=0)(votes)).all()
    votes[3] = np.nan
    assert np.isfinite(by_name("caf", f=3)(votes)).all()


def test_smea_takes_the_first_of_equal_sets():
    assert by_name("smea", f=1)(np.array([[3.0], [2.0], [1.0], [0.0]])) == 2


def test_bucketing_shuffles_anew_in_every_step_and_for_every_seed():
    votes = draw(15, 30)
    rules = [Bucketing(4, seed).at(step) for seed in (0, 1) for step in (0, 1, 2)]
    assert len({bits(rule(votes)) for rule in rules}) == len(rules)
    chained = Chain(Bucketing(4), Median())
    assert bits(chained.at(7)(votes)) == bits(Chain(Bucketing(4).at(7), Median())(votes))


def test_bucketing_puts_every_vote_into_one_bucket():
    weights = Bucketing(4).weights(np.zeros((16, 16)))
    assert weights.shape == (4, 15)
    assert ((weights > 0).sum(axis=0) == 1).all()
    assert sorted((weights > 0).sum(axis=1)) == [3, 4, 4, 4]
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_clipping_keeps_short_votes_bit_by_bit():
    votes = draw(15, 30)
    votes[:5] *= 1e-3
    clipped = Clipping(0.5)(votes)
    assert bits(clipped[:5]) == bits(votes[:5])
    np.testing.assert_allclose(np.linalg.norm(clipped[5:], axis=1), 0.5, rtol=1e-6)


def test_clipping_a_huge_vote_is_exact():
    votes = draw(15, 200_000)
    votes[4] = LARGEST
    np.testing.assert_allclose(Clipping(1.0)(votes)[4], 1 / np.sqrt(200_000), rtol=1e-6)


def test_adaptive_clipping_spares_the_shortest():
    votes = np.eye(15) * np.arange(1, 16)[:, None]
    norms = np.linalg.norm(AdaptiveClipping(3)(votes), axis=1)
    # floor(2 * 3 / 15 * 12) = 4 votes are clipped to the length of the next shorter, 11.
    np.testing.assert_allclose(norms, np.minimum(np.arange(1, 16), 11))


def test_caf_stands_numbers_whose_squares_of_squares_overflow():
    votes = np.random.default_rng(0).standard_normal((9, 20))
    votes[8] += 50
    rule = by_name("caf(f=1)")
    with np.errstate(all="raise", under="ignore"):
        large = rule(votes * 2.0**270)
    assert (large == rule(votes) * 2.0**270).all()

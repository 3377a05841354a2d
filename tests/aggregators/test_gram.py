"""What the rules are made of: the Gram matrix and weighted sums."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.aggregators.gram import (
    compose,
    gram_matrix,
    majority_radius,
    norms,
    squared_distances,
)
from horovod_detox.aggregators.spectral import largest_eigenvalues, least_eigenvalues
from horovod_detox.aggregators.subsets import coverable
from horovod_detox.arrays.blocks import by_block, finite_rows, mean, weighted
from tests.votes import bits, draw, few_examples


def pairwise(x):
    return ((x[:, None] - x[None]) ** 2).sum(axis=-1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distances_and_norms(dtype):
    votes = draw(9, 40_000, dtype=dtype)
    exact, gram = votes.astype(np.float64), gram_matrix(votes)
    assert gram.shape == (10, 10)
    np.testing.assert_allclose(squared_distances(gram), pairwise(exact), rtol=1e-10)
    np.testing.assert_allclose(norms(gram), np.linalg.norm(exact, axis=1), rtol=1e-10)
    reference = votes[0] + votes.dtype.type(1)
    from_reference = norms(gram_matrix(votes, reference))
    np.testing.assert_allclose(
        from_reference, np.linalg.norm(exact - reference.astype(float), axis=1), rtol=1e-10
    )


@pytest.mark.parametrize("lie", [1e3, 1e19, 1e38])
def test_distances_between_the_others_survive_a_huge_vote(lie):
    votes = draw(9, 1000)
    votes[4] = lie
    others = np.delete(votes, 4, axis=0).astype(np.float64)
    distances = np.delete(np.delete(squared_distances(gram_matrix(votes)), 4, 0), 4, 1)
    np.testing.assert_allclose(distances, pairwise(others), rtol=1e-6)


def test_ordinary_votes_are_seen_from_their_mean(monkeypatch):
    def trimmed_mean(rows, ranks):
        raise AssertionError("the median takes as long as the rest")

    monkeypatch.setattr("horovod_detox.arrays.host_kernels.trimmed_mean", trimmed_mean)
    votes = draw(15, 20_000)
    votes[3] *= -100
    gram_matrix(votes + 1000)
    with pytest.raises(AssertionError, match="as long as the rest"):
        gram_matrix(votes * np.where(np.arange(15) == 3, 10, 1)[:, None])


def test_matrices_of_slices_add_up():
    votes = draw(9, 50_000)
    votes[2, :10_000] = 1e30
    reference = votes[0] / 2
    parts = [slice(0, 10_000), slice(10_000, 10_001), slice(10_001, 50_000)]
    total = np.sum([gram_matrix(votes[:, part], reference[part]) for part in parts], axis=0)
    whole = gram_matrix(votes, reference)
    np.testing.assert_allclose(squared_distances(total), squared_distances(whole), rtol=1e-9)
    np.testing.assert_allclose(norms(total), norms(whole), rtol=1e-9)


def test_equal_distances_are_equal():
    """The corners of a simplex, in an awkward place, are all equally far from each other."""
    rng = np.random.default_rng(0)
    votes = np.eye(12) + rng.standard_normal(12)
    distances = squared_distances(gram_matrix(votes))
    assert set(distances[~np.eye(12, dtype=bool)]) == {2.0}
    copies = np.repeat(rng.standard_normal((1, 500)), 12, axis=0)
    copies[0] += 1
    assert not squared_distances(gram_matrix(copies))[1:, 1:].any()


def test_majority_radius():
    points = np.array([0.0, 1.0, 2.0, 100.0, 101.0])[:, None]
    assert majority_radius(pairwise(points)) == 1
    assert majority_radius(pairwise(points[:4])) == 1


@pytest.mark.parametrize("reference", [None, "previous"])
def test_compose_is_the_matrix_of_the_weighted_votes(reference):
    votes = draw(9, 300, dtype=np.float64)
    before = None if reference is None else votes[0] * 0.3
    weights = np.random.default_rng(1).standard_normal((4, 9))
    rows = np.stack(weighted(weights)(votes, before))
    composed, direct = compose(gram_matrix(votes, before), weights), gram_matrix(rows, before)
    np.testing.assert_allclose(squared_distances(composed), squared_distances(direct), rtol=1e-9)
    np.testing.assert_allclose(norms(composed), norms(direct), rtol=1e-9)


def test_weighted_sums():
    rows = draw(4, 100)
    weights = np.array([[0, 1, 0, 0], [0, 0.5, 0.5, 0], [0.1, 0.2, 0, 0.3], [0, 0, 0, 0]])
    one, average, general, nothing = weighted(weights)(rows)
    assert bits(one) == bits(rows[1])
    assert bits(average) == bits((rows[1] + rows[2]) / np.float32(2))
    exact = weights[2] @ rows.astype(np.float64)
    np.testing.assert_allclose(general, exact, rtol=1e-6, atol=1e-7)
    assert general.dtype == np.float32
    assert not nothing.any()


def test_what_weights_lack_goes_to_the_previous_result():
    rows, previous = draw(2, 10, dtype=np.float64), np.full(10, 2.0)
    (result,) = weighted(np.array([[0.25, 0.5]]))(rows, previous)
    np.testing.assert_allclose(result, 0.25 * rows[0] + 0.5 * rows[1] + 0.5)


def test_votes_of_weight_zero_are_not_read():
    rows = draw(3, 10)
    rows[1] = np.nan
    assert np.isfinite(weighted(np.array([[0.3, 0, 0.2]]))(rows)[0]).all()


def test_mean_adds_in_order():
    rows = np.array([[1e8], [1.0], [-1e8]], np.float32)
    assert mean(rows) == np.float32(0)
    rows = draw(7, 100)
    added = rows[0] + rows[1] + rows[2] + rows[3] + rows[4] + rows[5] + rows[6]
    assert bits(mean(rows)) == bits(added / np.float32(7))


def test_blocks_cover_every_column():
    votes = draw(3, 40_001)
    result = by_block(lambda block, _: block[0] - block[1], votes)
    assert bits(result) == bits(votes[0] - votes[1] + 0)
    rows = by_block(lambda block, _: [block[0], block[2]], votes, rows=2, dtype="float64")
    assert bits(rows) == bits(votes[[0, 2]].astype(np.float64) + 0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_rows(dtype, bad):
    votes = draw(5, 40_000, dtype=dtype)
    assert finite_rows(votes).all()
    votes[1, 0], votes[3, 39_999] = bad, bad
    assert finite_rows(votes).tolist() == [True, False, True, False, True]


@given(d=st.integers(1, 4), seed=st.integers(0, 10**6), lie=st.sampled_from([1, 1e9, 1e38]))
@few_examples
def test_smea_bounds_eigenvalues_from_below(d, seed, lie):
    votes = draw(9, d, seed, np.float64)
    votes[4] *= lie
    subsets = np.array(list(combinations(range(9), 6)))
    gram = gram_matrix(votes)[:-1, :-1]
    assert (least_eigenvalues(gram, subsets) <= largest_eigenvalues(gram, subsets)).all()
    for subset, eigenvalue in zip(subsets, largest_eigenvalues(gram, subsets), strict=True):
        covariance = np.atleast_2d(np.cov(votes[subset].T, bias=True))
        np.testing.assert_allclose(eigenvalue, np.linalg.eigvalsh(covariance)[-1], rtol=1e-6)


@given(n=st.integers(1, 9), density=st.floats(0, 1), seed=st.integers(0, 10**6))
@few_examples
def test_coverable(n, density, seed):
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < density, 1)
    edges = upper | upper.T
    neighbours = [sum(1 << int(j) for j in np.flatnonzero(row)) for row in edges]
    least = min(
        len(removed) - sum(removed)
        for removed in product([0, 1], repeat=n)
        if not edges[np.ix_(np.flatnonzero(removed), np.flatnonzero(removed))].any()
    )
    assert [coverable(neighbours, (1 << n) - 1, budget) for budget in range(n + 1)] == [
        budget >= least for budget in range(n + 1)
    ]

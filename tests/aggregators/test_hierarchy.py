"""The two-level rule, and pre-aggregators chained to rules."""

import numpy as np
import pytest

from horovod_detox.aggregators import (
    AGGREGATORS,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Chain,
    Clipping,
    Hierarchy,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighborMixing,
    TooFewVotes,
    TrimmedMean,
    by_name,
    gram_matrix,
)
from tests.votes import NEEDED, bits, draw

NAMES = [name for name in AGGREGATORS if name != "centered_clipping"]


def two_levels(inner, outer, votes, buckets):
    """Reduce in two separate steps what a hierarchy reduces in one."""
    results = [
        inner(votes[i::buckets]) if len(votes[i::buckets]) > 1 else votes[i] for i in range(buckets)
    ]
    return outer(np.stack(results))


@pytest.mark.parametrize("outer", NAMES)
@pytest.mark.parametrize("inner", NAMES)
def test_is_the_outer_rule_of_the_inner_results(inner, outer):
    rules, votes = (by_name(inner), by_name(outer)), draw(15, 40, dtype=np.float64)
    for buckets in (3, 4, 5, 15):
        expected = two_levels(*rules, votes, buckets)
        np.testing.assert_allclose(Hierarchy(*rules, buckets)(votes), expected, atol=1e-5)


@pytest.mark.parametrize("outer", [*NAMES, "centered_clipping"])
def test_without_buckets_it_is_the_outer_rule(outer):
    rule, votes = by_name(outer, **NEEDED.get(outer, [{}])[0]), draw(15, 40)
    assert bits(Hierarchy(Mean(), rule)(votes)) == bits(rule(votes))
    assert bits(Hierarchy(Krum(), rule, 15)(votes)) == bits(rule(votes))


@pytest.mark.parametrize("previous", [None, draw(1, 40, seed=4)[0]])
def test_previous_reaches_both_levels(previous):
    rule, votes = CenteredClipping(1.0), draw(15, 40)
    results = np.stack([rule(votes[i::5], previous) for i in range(5)])
    expected = rule(results, previous)
    np.testing.assert_allclose(Hierarchy(rule, rule, 5)(votes, previous), expected, atol=1e-6)


def test_one_gram_matrix_serves_all_buckets():
    votes, calls = draw(15, 40), []

    def gram(values, reference):
        calls.append(values.shape)
        return gram_matrix(values, reference)

    Hierarchy(MultiKrum(), Krum(), 3).reduce(votes, gram)
    assert calls == [(15, 40), (3, 40)]
    calls.clear()
    Hierarchy(Mean(), Median(), 3).reduce(votes, gram)
    Chain(Bucketing(2), Median()).reduce(votes, gram)
    assert calls == []
    Chain(NearestNeighborMixing(), Krum()).reduce(votes, gram)
    assert calls == [(15, 40)]


@pytest.mark.parametrize(
    ("inner", "buckets", "outer", "n", "most"),
    [
        (Mean(), None, Median(), 15, 7),
        (Mean(), 5, Median(), 15, 2),
        (Median(), 5, Median(), 15, 5),  # 2 of 3 votes capture a bucket: 3 buckets take 6
        (Median(), 5, Median(), 14, 2),  # the smallest bucket has 2 votes: 1 captures it
        (TrimmedMean(0), 5, Median(), 15, 2),
        (MultiKrum(), 2, Mean(), 15, 2),
        (Krum(), 3, Median(), 15, 3),
        (Krum(), 5, Median(), 10, -1),
        (Mean(), None, Bulyan(), 15, 3),
        (Mean(), 2, Bulyan(), 15, -1),
    ],
)
def test_max_f(inner, buckets, outer, n, most):
    rule = Hierarchy(inner, outer, buckets)
    assert rule.max_f(n) == most
    with pytest.raises(ValueError, match=r"needs n >=|tolerates no faulty vote"):
        rule.with_f(most + 1, n).check(n)
    if most >= 0:
        rule.with_f(most, n).check(n)


@pytest.mark.parametrize("inner", [Mean(), Median(), TrimmedMean(), Krum(), MultiKrum()])
@pytest.mark.parametrize("outer", [Median(), TrimmedMean(), Krum()])
@pytest.mark.parametrize("buckets", [None, 3, 5])
def test_stands_as_many_faulty_votes_as_it_says(inner, outer, buckets):
    """The worst placement: the faulty votes capture one bucket after the other."""
    n, rule = 15, Hierarchy(inner, outer, buckets)
    most = rule.max_f(n)
    assert most >= 0
    votes = draw(n, 30)
    order = sorted(range(n), key=lambda i: (i % (buckets or n), i))
    bad = order[:most]
    honest = np.delete(votes, bad, axis=0)
    votes[bad] = 1e30
    result = rule.with_f(most, n)(votes)
    assert (result <= honest.max(axis=0) + 1e-5).all()
    assert (result >= honest.min(axis=0) - 1e-5).all()


def test_with_f_is_divided_among_the_levels():
    rule = Hierarchy(TrimmedMean(), Krum(), 5)
    assert rule.with_f(1, 15) == Hierarchy(TrimmedMean(1), Krum(0), 5)
    assert rule.with_f(2, 15) == Hierarchy(TrimmedMean(1), Krum(1), 5)
    assert rule.with_f(3, 15) == Hierarchy(TrimmedMean(1), Krum(1), 5)
    assert Hierarchy(Mean(), Bulyan()).with_f(2, 15) == Hierarchy(Mean(), Bulyan(2))
    given = Hierarchy(TrimmedMean(1), Krum(1), 5)
    assert given.with_f(3, 15) == given
    with pytest.raises(ValueError, match=r"Krum\(f=0\) does not tolerate 1 faulty votes among 5"):
        Hierarchy(TrimmedMean(1), Krum(0), 5).with_f(2, 15)
    with pytest.raises(
        ValueError,
        match=r"15 votes in 5 buckets, each corrupted by 2 of 4 faulty votes: Krum needs "
        r"n >= 2f \+ 3: 5 votes with f = 2 \(needs 7\)",
    ):
        rule.with_f(4, 15)


def test_check():
    mixed = Hierarchy(Krum(), Median(), 4)
    with pytest.raises(ValueError, match="buckets = 7: there are only 5 votes"):
        Hierarchy(Mean(), Median(), 7).check(5)
    with pytest.raises(
        ValueError, match=r"10 votes in 5 buckets: Krum needs .*: 2 votes with f = 0"
    ):
        Hierarchy(Krum(), Median(), 5).check(10)
    with pytest.raises(
        ValueError, match=r"15 votes in 5 buckets: Krum needs .*: 5 votes with f = 2"
    ):
        Hierarchy(Mean(), Krum(2), 5).check(15)
    Hierarchy(Mean(), Krum(1), 5).check(15)
    for say in (mixed.check, lambda n: mixed.with_f(0, n)):
        with pytest.raises(ValueError, match=r"7 votes in 4 buckets: Krum needs .*: 2 votes"):
            say(7)
    with pytest.raises(ValueError, match="0 votes with f = 0"):
        Hierarchy(Mean(), Median()).check(0)


def test_fit_to_fewer_votes():
    assert Hierarchy(Mean(), Median(), 5).fit(3).buckets == 3
    assert Hierarchy(Krum(), Median(), 5).fit(13).buckets == 4
    assert Hierarchy(Mean(), TrimmedMean(2), 5).fit(3) == Hierarchy(Mean(), TrimmedMean(1), 3)
    assert Hierarchy(Mean(), Bulyan()).fit(11).outer == Bulyan(2)
    with pytest.raises(TooFewVotes, match=r"Krum needs n >= 2f \+ 3: 2 votes"):
        Hierarchy(Mean(), Krum(1), 5).fit(2)


def test_votes_that_are_not_finite_are_left_out():
    rule, votes = Hierarchy(MultiKrum(), Median(), 4), draw(15, 30)
    votes[[1, 2, 3], 5] = np.nan
    finite = np.delete(votes, [1, 2, 3], axis=0)
    assert bits(rule(votes)) == bits(rule(finite))
    votes[:8, 5] = np.nan
    assert np.isnan(rule(votes)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_element_type_stays(dtype):
    votes = draw(15, 300, dtype=dtype)
    result = Hierarchy(Mean(), Mean(), 5)(votes)
    assert result.dtype == dtype
    # The bucket means of narrow votes are not rounded to their type in between.
    a, b, c = votes.astype(np.float64 if dtype == np.float64 else np.float32).reshape(3, 5, 300)
    means = (a + b + c) / 3
    expected = (means[0] + means[1] + means[2] + means[3] + means[4]) / 5
    assert bits(result) == bits(expected.astype(dtype))


def test_step_reaches_every_stage():
    rule = Hierarchy(Chain(Bucketing(2), Median()), Chain(Bucketing(2), Median()), 3)
    at = rule.at(5)
    assert at.inner == at.outer == Chain(Bucketing(2, step=5), Median())
    assert Chain(Clipping(1.0), at.inner.at(0)).at(5).rule == at.inner


@pytest.mark.parametrize(
    "pre", ["nearest_neighbor_mixing", "bucketing(s=2)", "clipping(radius=2.0)"]
)
@pytest.mark.parametrize("rule", NAMES)
def test_chain_is_the_rule_of_the_rows(pre, rule):
    chain, votes = by_name(f"{pre}+{rule}").fit(15), draw(15, 40, dtype=np.float64)
    assert isinstance(chain, Chain)
    expected = chain.rule(chain.pre(votes))
    np.testing.assert_allclose(chain(votes), expected, atol=1e-5)


def test_chained_centered_clipping_keeps_its_centre():
    chain, votes = Chain(NearestNeighborMixing(2), CenteredClipping(1.0)), draw(15, 40)
    previous = draw(1, 40, seed=4)[0]
    expected = chain.rule(chain.pre(votes), previous)
    np.testing.assert_allclose(chain(votes, previous), expected, atol=1e-6)


def test_what_cannot_be_a_level_is_refused():
    with pytest.raises(ValueError, match="cannot be an inner aggregator"):
        Hierarchy(Hierarchy(Mean(), Mean()), Mean())
    with pytest.raises(ValueError, match="put a rule after it"):
        Hierarchy(Mean(), Bucketing(2))
    with pytest.raises(ValueError, match="there must be at least one"):
        Hierarchy(Mean(), Mean(), 0)
    with pytest.raises(ValueError, match="measures votes from the origin"):
        Hierarchy(Chain(Clipping(1.0), Mean()), CenteredClipping(1.0))

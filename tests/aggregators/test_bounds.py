"""How many faulty votes a rule stands, what it says when they are too many, and by_name."""

from math import comb

import numpy as np
import pytest

from horovod_detox.aggregators import (
    AGGREGATORS,
    CAF,
    MDA,
    PRE_AGGREGATORS,
    SMEA,
    AdaptiveClipping,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Chain,
    Clipping,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighborMixing,
    Phocas,
    TooFewVotes,
    TrimmedMean,
    by_name,
)
from horovod_detox.registry import build
from tests.votes import PRE_CASES, RULE_CASES, draw

VOTES_NEEDED = {"krum": lambda f: 2 * f + 3, "multi_krum": lambda f: 2 * f + 3,
                "bulyan": lambda f: 4 * f + 3}  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), RULE_CASES)
def test_max_f(name, parameters):
    rule = by_name(name, **parameters)
    needed = VOTES_NEEDED.get(name, lambda f: 2 * f + 1)
    for n in range(25):
        standing = [f for f in range(n + 1) if needed(f) <= n]
        if name == "mean":
            standing = standing[:1]
        if name == "smea":
            standing = [f for f in standing if comb(n, f) <= 10_000]
        assert max(rule.max_f(n), -1) == max(standing, default=-1)


@pytest.mark.parametrize(
    ("rule", "n", "message"),
    [
        (Bulyan(4), 15, r"Bulyan needs n >= 4f \+ 3: 15 votes with f = 4 \(needs 19\)"),
        (Krum(7), 15, r"Krum needs n >= 2f \+ 3: 15 votes with f = 7 \(needs 17\)"),
        (MultiKrum(2), 6, r"MultiKrum needs n >= 2f \+ 3: 6 votes with f = 2 \(needs 7\)"),
        (TrimmedMean(1), 2, r"TrimmedMean needs n >= 2f \+ 1: 2 votes with f = 1 \(needs 3\)"),
        (MDA(3), 6, r"MDA needs n >= 2f \+ 1: 6 votes with f = 3"),
        (Median(), 0, r"Median needs n >= 2f \+ 1: 0 votes with f = 0"),
        (Mean(), 0, r"Mean tolerates no faulty vote: 0 votes"),
        (Krum(), 2, r"Krum needs n >= 2f \+ 3: 2 votes with f = 0 \(needs 3\)"),
        (SMEA(9), 20, r"SMEA searches at most 10000 subsets: 20 votes with f = 9 have more"),
        (SMEA(10), 20, r"SMEA needs n >= 2f \+ 1"),
        (MultiKrum(1, m=9), 8, r"MultiKrum averages m = 9 votes, but there are only 8"),
        (Chain(Bucketing(2), Krum(3)), 15, r"Krum needs n >= 2f \+ 3: 8 votes with f = 3"),
        (Chain(NearestNeighborMixing(8), Mean()), 15, r"NearestNeighborMixing needs n >= 2f"),
        (AdaptiveClipping(15), 15, r"AdaptiveClipping needs n >= 2f \+ 1: 15 votes with f = 15"),
    ],
)
def test_too_few_votes(rule, n, message):
    with pytest.raises(ValueError, match=message):
        rule.check(n)
    with pytest.raises(ValueError, match=message):
        rule(draw(n, 5))


@pytest.mark.parametrize(("name", "parameters"), RULE_CASES)
def test_check_agrees_with_max_f(name, parameters):
    rule = by_name(name, **parameters)
    for n in range(2, 25):
        if rule.max_f(n) >= (rule.given_f or 0):
            rule.check(n)
        else:
            with pytest.raises(ValueError, match=f"{n} votes with f = {rule.given_f or 0}"):
                rule.check(n)


def test_fit_sets_and_lowers_f():
    assert TrimmedMean().fit(15) == TrimmedMean(7)
    assert TrimmedMean(3).fit(15) == TrimmedMean(3)
    assert Bulyan(3).fit(14) == Bulyan(2)
    assert Median().fit(1) == Median()
    assert MultiKrum(1, m=9).fit(8) == MultiKrum(1, m=8)
    with pytest.raises(TooFewVotes, match=r"Krum needs n >= 2f \+ 3: 2 votes"):
        Krum(2).fit(2)


def test_chain_shares_f():
    assert Chain(NearestNeighborMixing(), Krum()).fit(15) == Chain(
        NearestNeighborMixing(6), Krum(6)
    )
    assert Chain(NearestNeighborMixing(), TrimmedMean(2)).fit(15).pre == NearestNeighborMixing(2)
    assert Chain(AdaptiveClipping(), Mean()).fit(15).pre == AdaptiveClipping(7)
    assert Chain(Bucketing(2), Krum()).fit(15).rule == Krum(2)
    nested = Chain(Clipping(1.0), Chain(NearestNeighborMixing(), Krum(1)))
    assert nested.fit(15).rule == Chain(NearestNeighborMixing(1), Krum(1))
    assert Chain(Bucketing(2), Krum()).max_f(15) == 2
    with pytest.raises(TooFewVotes, match="Krum"):
        Chain(Bucketing(4), Krum()).fit(8)


def test_with_f():
    assert Krum().with_f(2, 15) == Krum(2)
    assert Krum(3).with_f(2, 15) == Krum(3)
    assert Median().with_f(7, 15) == Median()
    assert Chain(NearestNeighborMixing(), Krum()).with_f(2, 15).fit(15).rule == Krum(2)
    with pytest.raises(ValueError, match=r"Krum needs n >= 2f \+ 3: 15 votes with f = 7"):
        Krum().with_f(7, 15)
    with pytest.raises(ValueError, match=r"Krum\(f=1\) does not tolerate 2 faulty votes among 15"):
        Krum(1).with_f(2, 15)
    with pytest.raises(ValueError, match="Mean tolerates no faulty vote: 15 votes with f = 1"):
        Mean().with_f(1, 15)


@pytest.mark.parametrize(
    ("name", "parameters"), [case for case in RULE_CASES if case[1].get("f") == 1]
)
def test_f_must_be_a_count(name, parameters):
    for f in (-1, 1.0, True, "2"):
        with pytest.raises(ValueError, match=r"f = .* must be an integer of at least 0"):
            by_name(name, **parameters | {"f": f})


@pytest.mark.parametrize("radius", [0, -1.0, float("inf"), float("nan"), "1", None, True])
@pytest.mark.parametrize("rule", [CenteredClipping, Clipping])
def test_radius_must_be_positive(rule, radius):
    with pytest.raises(ValueError, match=r"radius = .* must be a positive number"):
        rule(radius)


def test_numbers_may_come_from_numpy():
    assert TrimmedMean(1).fit(9) == TrimmedMean(np.int64(1)).fit(9)  # pyright: ignore[reportArgumentType]
    assert Clipping(np.float32(2.0)) == Clipping(2.0)  # pyright: ignore[reportArgumentType]


def test_other_parameters_are_checked():
    with pytest.raises(ValueError, match="MultiKrum: m = 0 must be"):
        MultiKrum(1, m=0)
    with pytest.raises(ValueError, match="Bucketing: s = 0 must be"):
        Bucketing(0)
    with pytest.raises(ValueError, match="CenteredClipping: iterations = 0 must be"):
        CenteredClipping(1.0, iterations=0)
    with pytest.raises(ValueError, match=r"Median.* is not a pre-aggregator"):
        Chain(Median(), Median())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="cannot be the rule after a pre-aggregator"):
        Chain(Bucketing(2), Bucketing(2))
    with pytest.raises(ValueError, match=r"Clipping\(radius=1\.0\) measures votes from the origin"):
        Chain(Clipping(1.0), CenteredClipping(1.0))


@pytest.mark.parametrize("name", [*AGGREGATORS, *PRE_AGGREGATORS])
def test_a_misspelt_parameter_is_refused(name):
    table = AGGREGATORS | PRE_AGGREGATORS
    with pytest.raises(ValueError, match=f"{name} has no parameter 'F'"):
        build(table, name, F=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multikrum", "there is no aggregator 'multikrum': did you mean 'multi_krum'?"),
        ("Median", "did you mean 'median'"),
        ("qqq", "there is no aggregator 'qqq'; Known: bulyan, caf"),
        ("krum(n=3)", "krum has no parameter 'n'; Known: f"),
        ("median(f=1)", "median has no parameter 'f': it takes none"),
        ("centered_clipping", r"needs a value for radius: centered_clipping\(radius=...\)"),
        ("krum(f=-1)", "f = -1 must be an integer"),
        ("bucketing(s=2)", r"pre-aggregator: put a rule after it, as in bucketing\(s=2\)\+median"),
        ("krum+median", "there is no pre-aggregator 'krum'"),
        ("bucketing(s=2)+", "'' is not of the form"),
    ],
)
def test_by_name_explains(text, message):
    with pytest.raises(ValueError, match=message):
        by_name(text)


def test_by_name():
    assert by_name("multi_krum", f=2) == by_name("multi_krum(f=2)") == MultiKrum(2)
    assert by_name(" caf ( f = 1 ) ") == CAF(1)
    assert by_name("nearest_neighbor_mixing(f=2)+trimmed_mean") == Chain(
        NearestNeighborMixing(2), TrimmedMean()
    )
    assert by_name("clipping(radius=1e+3)+bucketing(s=2)+phocas", f=1) == Chain(
        Clipping(1e3), Chain(Bucketing(2), Phocas(1))
    )
    with pytest.raises(ValueError, match="krum: f is given twice"):
        by_name("krum(f=1)", f=2)


@pytest.mark.parametrize(("name", "parameters"), PRE_CASES)
def test_any_pre_aggregator_goes_before_any_rule(name, parameters):
    pre, votes = build(PRE_AGGREGATORS, name, **parameters), draw(21, 10)
    for rule, needed in RULE_CASES:
        if rule != "centered_clipping" and needed.get("f") is None:
            result = Chain(pre, by_name(rule, **needed))(votes)
            assert result.shape == (10,)

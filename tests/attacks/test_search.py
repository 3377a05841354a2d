"""Attacks that search the lie that does most harm."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.attacks import (
    ALittleIsEnough,
    FaultyRank,
    OptimalALittleIsEnough,
    OptimalInnerProduct,
)
from horovod_detox.attacks.omniscient import most_harmful
from tests.attacks.scenes import (
    FAULTY,
    D,
    every_dtype,
    gradients,
    hamming,
    honest_of,
    scene_of,
    uniform_groups,
)


@given(peak=st.floats(0.06, 100))
def test_most_harmful_finds_a_peak_within_two_per_cent(peak):
    found = most_harmful(lambda x: -abs(math.log(x / peak)), limit=100.0)
    assert found == pytest.approx(peak, rel=0.02)


@given(limit=st.floats(0.1, 1e4))
def test_most_harmful_goes_to_the_limit_when_harm_grows_and_to_the_least_when_flat(limit):
    tried = []

    def harm(x):
        tried.append(x)
        return x

    assert most_harmful(harm, limit) == limit
    assert max(tried) <= limit
    assert len(tried) <= 24
    assert most_harmful(lambda _: 0.0, limit) < limit / 2**11


@pytest.mark.parametrize("attack", [OptimalALittleIsEnough(limit=8), OptimalInnerProduct(limit=8)])
def test_optimal_attacks_stop_just_below_a_norm_filter(attack):
    """An aggregator that drops the lie beyond a distance: the best factor lies just inside."""
    scene = scene_of(np.float64)
    mean, deviation = honest_of(scene).mean(0), honest_of(scene).std(0)
    start, direction = np.zeros(D), -mean
    if isinstance(attack, OptimalALittleIsEnough):
        start, direction = mean, -deviation
    edge = 3.0

    def aggregate(lie):
        factor = np.linalg.norm(lie - start) / np.linalg.norm(direction)
        return lie if factor <= edge else mean

    sent = attack.corrupt(dataclasses.replace(scene, aggregate=aggregate))
    factor = np.linalg.norm(sent - start) / np.linalg.norm(direction)
    assert edge * 0.98 <= factor <= edge
    np.testing.assert_allclose(sent, start + factor * direction, atol=1e-9)


def test_optimal_attacks_go_to_the_limit_when_nothing_stops_them():
    scene = scene_of(np.float64)
    mean, deviation = honest_of(scene).mean(0), honest_of(scene).std(0)
    sent = OptimalALittleIsEnough(limit=8).corrupt(scene)
    np.testing.assert_allclose(sent, mean - 8 * deviation, atol=1e-12)
    np.testing.assert_allclose(OptimalInnerProduct(limit=8).corrupt(scene), -8 * mean, atol=1e-12)


@every_dtype
def test_optimal_attacks_try_lies_as_they_are_sent(dtype):
    tried = []

    def aggregate(lie):
        tried.append(lie)
        return lie

    sent = OptimalInnerProduct().corrupt(scene_of(dtype, aggregate=aggregate))
    assert {lie.dtype for lie in tried} == {dtype}
    assert any(hamming(sent, lie) == 0 for lie in tried)


def test_optimal_attack_does_more_harm_than_a_fixed_one():
    groups = uniform_groups(9, 1)
    everyone = gradients(9, D)
    honest_mean = np.delete(everyone, FAULTY, axis=0).mean(0)

    def median(copies):
        return np.median(copies, axis=0)

    def harm(attack):
        copies = everyone.copy()
        for rank in FAULTY:
            copies[rank] = FaultyRank(attack, rank, groups).corrupt(
                0, everyone[rank], everyone, median
            )
        return np.linalg.norm(median(copies) - honest_mean)

    best = harm(OptimalALittleIsEnough(ranks=FAULTY))
    for z in (0.1, 0.5, 1.0):
        assert best >= harm(ALittleIsEnough(z, ranks=FAULTY))


def test_a_lie_that_makes_the_update_nan_counts_as_the_greatest_harm():
    scene = scene_of(aggregate=lambda lie: np.where(np.abs(lie) > 2, np.nan, lie))
    sent = OptimalInnerProduct().corrupt(scene)
    assert np.abs(sent).max() > 2


def test_optimal_attacks_demand_an_aggregation():
    with pytest.raises(ValueError, match="OptimalInnerProduct needs the rule that it attacks"):
        OptimalInnerProduct().corrupt(scene_of(aggregate=None))

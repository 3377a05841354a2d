"""What each attack sends, against independent formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.attacks import (
    ALittleIsEnough,
    Constant,
    FaultyRank,
    Gaussian,
    Inf,
    InnerProduct,
    Mimic,
    NaN,
    Noise,
    Random,
    Reverse,
    Scene,
    Stale,
    Zero,
)
from horovod_detox.attacks.omniscient import largest_safe_z
from tests.attacks.scenes import (
    D,
    bits,
    every_dtype,
    gradients,
    hamming,
    honest_of,
    scene_of,
    uniform_groups,
    wide,
)


@every_dtype
@given(scale=st.floats(1e-3, 1e3))
def test_reverse(dtype, scale):
    own = gradients(50, dtype=dtype)
    expected = (np.float32(-scale) * own.astype(np.float32)).astype(dtype)
    if dtype == np.float64:
        expected = -scale * own
    assert hamming(Reverse(scale).corrupt(Scene(own=own)), expected) == 0


def test_reverse_is_a_sign_flip_by_one_and_100_by_default():
    own = np.array([1.0, -2.0, 0.0], np.float32)
    assert hamming(Reverse(1).corrupt(Scene(own=own)), -own) == 0
    assert Reverse().corrupt(Scene(own=own)).tolist() == [-100, 200, 0]


@every_dtype
def test_constants(dtype):
    own = gradients(4, dtype=dtype)
    for attack, value in [(Constant(), -1), (Constant(-100), -100), (Zero(), 0), (Inf(), np.inf)]:
        assert wide(attack.corrupt(Scene(own=own))).tolist() == [value] * 4
    assert np.isnan(wide(NaN().corrupt(Scene(own=own)))).all()


def test_zero_is_positive_zero_whatever_the_gradient():
    own = np.array([-1, np.nan, np.inf, -0.0], np.float32)
    assert bits(Zero().corrupt(Scene(own=own))).tolist() == [0, 0, 0, 0]


def test_gaussian_replaces_the_gradient_and_noise_is_added_to_it():
    own = np.full(100_000, 7.0, np.float32)
    replaced = Gaussian(std=2, mean=1).corrupt(scene_of(own=own))
    added = Noise(std=2).corrupt(scene_of(own=own))
    assert replaced.mean() == pytest.approx(1, abs=0.05)
    assert added.mean() == pytest.approx(7, abs=0.05)
    for sent in (replaced, added):
        assert sent.std() == pytest.approx(2, rel=0.02)
    other = Gaussian(std=2, mean=1).corrupt(scene_of(own=-own))
    assert hamming(replaced, other) == 0


def test_random_bits_are_fair_coins():
    sent = Random().corrupt(scene_of())
    ones = np.unpackbits(bits(sent).view(np.uint8)).mean()
    assert ones == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("lag", "past", "expected"), [(1, 3, 2), (2, 3, 1), (3, 3, 0), (5, 2, 0)])
def test_stale(lag, past, expected):
    history = list(gradients(past, D, seed=5))
    sent = Stale(lag).corrupt(scene_of(past=history))
    assert hamming(sent, history[expected]) == 0
    assert not any(np.shares_memory(sent, known) for known in history)


def test_stale_without_a_past_sends_its_own():
    scene = scene_of(past=[])
    sent = Stale(2).corrupt(scene)
    assert hamming(sent, scene.own) == 0
    assert not np.shares_memory(sent, scene.own)


@given(z=st.floats(-3, 3))
def test_a_little_is_enough_with_given_z(z):
    scene = scene_of(np.float64)
    mean = sum(honest_of(scene)) / len(honest_of(scene))
    deviation = np.sqrt(sum((row - mean) ** 2 for row in honest_of(scene)) / len(honest_of(scene)))
    np.testing.assert_allclose(ALittleIsEnough(z).corrupt(scene), mean - z * deviation, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "f", "z"),
    [
        (50, 24, 1.4261),  # the paper's example: 24 / 26
        (15, 2, 0.0966),  # 7 / 13
        (45, 5, 0.1257),  # 22 / 40
        (3, 1, 0.0),  # 1 / 2
        (4, 1, -0.4307),  # 1 / 3
    ],
)
def test_largest_safe_z(n, f, z):
    assert largest_safe_z(n, f) == pytest.approx(z, abs=5e-5)


@given(n=st.integers(3, 100), data=st.data())
def test_largest_safe_z_inverts_the_normal_distribution(n, data):
    f = data.draw(st.integers(1, n // 2))
    s = math.floor(n / 2 + 1) - f
    phi = 0.5 * (1 + math.erf(largest_safe_z(n, f) / math.sqrt(2)))
    assert phi == pytest.approx((n - f - s) / (n - f), abs=1e-12)


@pytest.mark.parametrize(("n", "f"), [(2, 1), (4, 3), (9, 5), (1, 0)])
def test_no_safe_z_for_a_majority(n, f):
    with pytest.raises(ValueError, match=f"not for n = {n}, f = {f}: give z"):
        largest_safe_z(n, f)


def test_a_little_is_enough_takes_z_from_the_ranks():
    scene = scene_of(num_ranks=45, num_faulty=5)
    given_z = ALittleIsEnough(largest_safe_z(45, 5)).corrupt(scene)
    assert hamming(ALittleIsEnough().corrupt(scene), given_z) == 0


def test_a_little_is_enough_checks_z_before_the_run():
    with pytest.raises(ValueError, match="not for n = 9, f = 5: give z"):
        FaultyRank(ALittleIsEnough(ranks="fixed:5"), 0, uniform_groups(3, 3))
    FaultyRank(ALittleIsEnough(1.0, ranks="fixed:5"), 0, uniform_groups(3, 3))


def test_inner_product():
    scene = scene_of(np.float64)
    np.testing.assert_allclose(
        InnerProduct(0.3).corrupt(scene),
        -0.3 * sum(honest_of(scene)) / len(honest_of(scene)),
        atol=1e-12,
    )


@given(target=st.integers(0, 6))
def test_mimic_copies_one_honest_rank(target):
    scene = scene_of()
    assert hamming(Mimic(target).corrupt(scene), honest_of(scene)[target]) == 0


@every_dtype
def test_honest_statistics_of_small_dtypes_are_taken_in_float32(dtype):
    scene = scene_of(dtype)
    wide_scene = scene_of(
        own=scene.own.astype(np.float32), honest=honest_of(scene).astype(np.float32)
    )
    for attack in (ALittleIsEnough(2.0), InnerProduct(0.5)):
        if dtype.itemsize < 4:
            expected = attack.corrupt(wide_scene).astype(dtype)
            assert hamming(attack.corrupt(scene), expected) == 0

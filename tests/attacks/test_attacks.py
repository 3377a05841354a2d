"""Attacks: definitions against independent formulas, placements, seeds, and the drill over time."""

import dataclasses
import math
import subprocess
import sys
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.attacks import (
    ATTACKS,
    ALittleIsEnough,
    Attack,
    Bias,
    BitFlip,
    Constant,
    FaultyRank,
    Gaussian,
    Inf,
    InnerProduct,
    LabelFlip,
    Mimic,
    NaN,
    Noise,
    OptimalALittleIsEnough,
    OptimalInnerProduct,
    Random,
    Reverse,
    Scene,
    Stale,
    Stride,
    Ulp,
    Zero,
    ZeroBlock,
    by_name,
    from_spec,
)
from horovod_detox.attacks.omniscient import largest_safe_z, most_harmful
from horovod_detox.vote.groups import Groups, form_groups

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
REQUIRED = {"label_flip": {"num_classes": 10}}
P, FAULTY, D = 9, (1, 4), 3000

every_attack = pytest.mark.parametrize("name", ATTACKS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def build(name: str, **parameters: Any) -> Attack:
    return by_name(name, **REQUIRED.get(name, {}), **parameters)


def gradients(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Return non-degenerate gradients: distinct, finite, no zeros."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (noise + np.where(noise >= 0, 0.01, -0.01)).astype(dtype)


def scene_of(dtype: Any = np.float32, **known: Any) -> Scene:
    copies = gradients(P, D, dtype=dtype)
    facts: dict[str, Any] = {
        "own": copies[1],
        "honest": np.delete(copies, FAULTY, axis=0),
        "past": [gradients(D, dtype=dtype, seed=past) for past in (1, 2, 3)],
        "rng": np.random.default_rng(0),
        "num_ranks": P,
        "num_faulty": len(FAULTY),
        "aggregate": lambda lie: lie,
    }
    return Scene(**facts | known)


def honest_of(scene: Scene) -> np.ndarray:
    assert scene.honest is not None
    return scene.honest


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def hamming(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.bitwise_count(bits(a) ^ bits(b)).sum())


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def uniform_groups(num_groups: int, group_size: int) -> Groups:
    return form_groups(num_groups * group_size, group_size)


# --- what every attack has to keep -----------------------------------------------------------


@every_attack
@every_dtype
def test_copy_differs_from_the_gradient_which_is_never_written(name, dtype):
    scene = scene_of(dtype)
    own, honest = scene.own.copy(), honest_of(scene).copy()
    scene.own.flags.writeable = honest_of(scene).flags.writeable = False
    attack = build(name)
    copy = attack.corrupt(scene)
    assert copy.dtype == dtype
    assert copy.shape == own.shape
    assert hamming(scene.own, own) == 0
    assert hamming(honest_of(scene), honest) == 0
    if name == "label_flip":
        assert hamming(copy, own) == 0
    else:
        assert hamming(copy, own) > 0
        assert not np.shares_memory(copy, scene.own)
        assert not np.shares_memory(copy, honest_of(scene))


@every_attack
@every_dtype
def test_same_scene_gives_the_same_bits(name, dtype):
    attack = build(name)
    first, second = attack.corrupt(scene_of(dtype)), attack.corrupt(scene_of(dtype))
    assert hamming(first, second) == 0


@every_attack
@every_dtype
def test_overflow_does_not_warn(name, dtype):
    big = np.full(D, ml_dtypes.finfo(dtype).max, dtype)
    big[::2] *= np.array(-1, dtype)
    scene = scene_of(dtype, own=big, honest=np.stack([big, -big, big]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(name).corrupt(scene)


@every_attack
def test_one_element_and_no_element(name):
    everyone = np.arange(1, 10, dtype=np.float32).reshape(9, 1)
    liar = FaultyRank(build(name, ranks=(1,)), 1, uniform_groups(3, 3))
    for size in (1, 0):
        own = everyone[1, :size]
        sent = liar.corrupt(1, own, everyone[:, :size], aggregate=lambda copies: copies[1])
        assert sent.shape == (size,)


@every_attack
def test_colluders_of_a_group_agree_and_independent_faults_differ(name):
    attack = build(name, ranks=(0, 1, 2, 3))
    groups = Groups(((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)))
    everyone = gradients(5, D).repeat(2, axis=0)

    def sent(rank):
        liar = FaultyRank(attack, rank, groups)
        own = everyone[rank].copy()
        liar.corrupt(6, gradients(D, seed=9), everyone, lambda copies: copies.mean(axis=0))
        return liar.corrupt(7, own, everyone, lambda copies: copies.mean(axis=0))

    if attack.colluding:
        assert hamming(sent(0), sent(1)) == 0
        assert hamming(sent(2), sent(3)) == 0
    elif name != "bias":
        assert hamming(sent(0), sent(1)) > 0
    assert hamming(sent(0), sent(0)) == 0


@pytest.mark.parametrize("name", ["gaussian", "noise", "random", "bit_flip", "ulp", "zero_block"])
def test_randomness_depends_on_seed_step_and_party(name):
    groups = uniform_groups(3, 3)
    own = gradients(D)

    def sent(seed=0, step=5, rank=0):
        return FaultyRank(by_name(name, seed=seed, ranks=(0, 1)), rank, groups).corrupt(step, own)

    assert hamming(sent(), sent()) == 0
    for other in (sent(seed=1), sent(step=6), sent(rank=1)):
        assert hamming(sent(), other) > 0


def test_table_names_are_the_class_names():
    for name, attack in ATTACKS.items():
        assert name.replace("_", "") == attack.__name__.lower()
        assert dataclasses.is_dataclass(attack)


# --- definitions -----------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=f"n = {n} ranks, f = {f} faulty"):
        largest_safe_z(n, f)


def test_a_little_is_enough_takes_z_from_the_ranks():
    scene = scene_of(num_ranks=45, num_faulty=5)
    given_z = ALittleIsEnough(largest_safe_z(45, 5)).corrupt(scene)
    assert hamming(ALittleIsEnough().corrupt(scene), given_z) == 0


def test_a_little_is_enough_checks_z_before_the_run():
    with pytest.raises(ValueError, match="n = 9 ranks, f = 5 faulty"):
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


# --- line search -----------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="OptimalInnerProduct needs the aggregation"):
        OptimalInnerProduct().corrupt(scene_of(aggregate=None))


# --- hardware --------------------------------------------------------------------------------


@every_dtype
@given(count=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_bit_flip_flips_exactly_count_bits(dtype, count, seed):
    own = gradients(5, dtype=dtype)
    sent = BitFlip(count).corrupt(Scene(own=own, rng=np.random.default_rng(seed)))
    assert hamming(sent, own) == count


@every_dtype
@given(data=st.data())
def test_bit_flip_keeps_to_the_given_bits(dtype, data):
    width = 8 * dtype.itemsize
    chosen = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=4, unique=True))
    own = gradients(40, dtype=dtype)
    count = data.draw(st.integers(1, 40))
    sent = BitFlip(count, bits=tuple(chosen)).corrupt(scene_of(own=own))
    flipped = int(np.bitwise_or.reduce(bits(sent) ^ bits(own)))
    assert hamming(sent, own) == count
    assert flipped & ~sum(1 << bit for bit in chosen) == 0


def test_bit_flip_reaches_every_bit():
    own = gradients(8)
    sent = BitFlip(8 * 32).corrupt(scene_of(own=own))
    assert hamming(sent, own) == 8 * 32
    hit = np.zeros(8, np.uint32)
    for seed in range(2000):
        hit |= bits(BitFlip().corrupt(Scene(own=own, rng=np.random.default_rng(seed)))) ^ bits(own)
    assert np.bitwise_count(hit).sum() == 8 * 32


def test_bit_flip_of_the_sign():
    own = gradients(1)
    assert BitFlip(bits=(31,)).corrupt(Scene(own=own)) == -own


def test_bit_flips_that_do_not_fit():
    with pytest.raises(ValueError, match="count 65 is greater than 64 bits"):
        BitFlip(65).corrupt(Scene(own=gradients(2)))
    with pytest.raises(ValueError, match=r"bits \(20,\) of float16: 16 bits wide"):
        BitFlip(bits=(20,)).corrupt(Scene(own=gradients(2, dtype=np.float16)))


@every_dtype
@given(size=st.integers(1, 64), num_bytes=st.integers(1, 300), seed=st.integers(0, 99))
def test_zero_block(dtype, size, num_bytes, seed):
    own = gradients(size, dtype=dtype)
    sent = ZeroBlock(num_bytes).corrupt(Scene(own=own, rng=np.random.default_rng(seed)))
    zeroed = np.flatnonzero(wide(sent) == 0)
    length = min(size, math.ceil(num_bytes / dtype.itemsize))
    assert zeroed.tolist() == list(range(zeroed[0], zeroed[0] + length))
    assert hamming(np.delete(sent, zeroed), np.delete(own, zeroed)) == 0


@every_dtype
@given(size=st.integers(1, 200), every=st.integers(1, 80), seed=st.integers(0, 99))
def test_stride(dtype, size, every, seed):
    own = gradients(size, dtype=dtype)
    sent = Stride(every).corrupt(Scene(own=own, rng=np.random.default_rng(seed)))
    wrong = np.flatnonzero(bits(sent) != bits(own))
    assert wrong[0] < every
    assert wrong.tolist() == list(range(wrong[0], size, every))
    assert wide(sent)[wrong].tolist() == (-wide(own)[wrong]).tolist()


@every_dtype
@given(relative=st.sampled_from([1e-3, -1e-3, 0.1, -0.5, 1e-9, -1e-9, 2.0]))
def test_bias_is_relative_and_at_least_one_ulp(dtype, relative):
    own = gradients(200, dtype=dtype)
    sent = Bias(relative).corrupt(Scene(own=own))
    moved = wide(sent) - wide(own)
    farther = np.where(np.abs(wide(sent)) > np.abs(wide(own)), sent, own)
    ulp = np.abs(wide(farther) - wide(neighbours(farther, 0.0))) * 2
    assert (np.sign(moved) == np.sign(relative * wide(own))).all()
    assert (np.abs(moved - relative * wide(own)) <= ulp).all()


def test_bias_leaves_zero_and_non_finite_values():
    own = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], np.float32)
    sent = Bias(1e-9).corrupt(Scene(own=own))
    assert hamming(sent[:5], own[:5]) == 0
    assert sent[5] == np.nextafter(np.float32(1), np.float32(2))


def neighbours(array: np.ndarray, towards: float) -> np.ndarray:
    return np.nextafter(array, np.full_like(array, towards))


@every_dtype
@given(seed=st.integers(0, 999))
def test_ulp_moves_one_element_to_its_neighbour(dtype, seed):
    own = gradients(30, dtype=dtype, seed=seed)
    sent = Ulp().corrupt(Scene(own=own, rng=np.random.default_rng(seed)))
    (at,) = np.flatnonzero(bits(sent) != bits(own))
    assert bits(sent)[at] == bits(neighbours(own, 0.0))[at]


@every_dtype
@pytest.mark.parametrize("special", ["0.0", "-0.0", "inf", "-inf", "nan", "max", "tiny"])
def test_ulp_changes_special_values(dtype, special):
    info = ml_dtypes.finfo(dtype)
    value = {"max": info.max, "tiny": info.smallest_subnormal}.get(special)
    own = np.array([float(special) if value is None else value]).astype(dtype)
    sent = Ulp().corrupt(Scene(own=own))
    assert abs(int(bits(sent)[0]) - int(bits(own)[0])) == 1
    assert np.signbit(sent[0]) == np.signbit(own[0])


# --- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_label_flip(dtype):
    labels = np.arange(10, dtype=dtype)
    flipped = LabelFlip(10).labels(labels)
    assert flipped.dtype == dtype
    assert flipped.tolist() == list(range(9, -1, -1))
    assert labels.tolist() == list(range(10))


def test_label_flip_keeps_torch_tensors():
    torch = pytest.importorskip("torch")
    flipped = LabelFlip(3).labels(torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert flipped.dtype == torch.uint8
    assert flipped.tolist() == [2, 1, 0]


def test_label_flip_keeps_tensorflow_tensors():
    tf = pytest.importorskip("tensorflow")
    flipped = LabelFlip(3).labels(tf.constant([0, 1, 2], tf.uint8))
    assert flipped.dtype == tf.uint8
    assert flipped.numpy().tolist() == [2, 1, 0]


def test_drill_flips_labels_only_of_faulty_ranks_and_steps():
    attack = LabelFlip(10, ranks=(1,), steps=(5, 6))
    groups = uniform_groups(3, 3)
    labels = np.array([0, 1])
    assert FaultyRank(attack, 1, groups).labels(5, labels).tolist() == [9, 8]
    assert FaultyRank(attack, 1, groups).labels(6, labels) is labels
    assert FaultyRank(attack, 0, groups).labels(5, labels) is labels
    assert FaultyRank(Reverse(ranks=(1,)), 1, groups).labels(5, labels) is labels


# --- parameters and specs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "parameters", "message"),
    [
        (Reverse, {"ranks": (-1, 2)}, "a negative rank"),
        (Reverse, {"ranks": (2, 1, 2)}, "a rank twice"),
        (Reverse, {"ranks": (1.5,)}, "ranks must be"),
        (Reverse, {"ranks": 3}, "ranks must be"),
        (Reverse, {"ranks": "spred:2"}, r"'spred:2' is not one of random:COUNT"),
        (Reverse, {"ranks": "spread"}, "'spread' is not one of"),
        (Reverse, {"ranks": "spread:-2"}, "'spread:-2' is not one of"),
        (Reverse, {"ranks": "spread:two"}, "'spread:two' is not one of"),
        (Reverse, {"ranks": "spread:²"}, "is not one of"),
        (Reverse, {"steps": (5, 5)}, "hold no step"),
        (Reverse, {"steps": (-2, 5)}, "hold no step"),
        (Reverse, {"steps": 5}, "steps must be"),
        (Reverse, {"steps": (1, 2, 3)}, "steps must be"),
        (Reverse, {"probability": 1.5}, "probability 1.5 is greater than 1"),
        (Reverse, {"probability": -0.1}, "probability -0.1 is less than 0"),
        (Reverse, {"probability": "often"}, "probability must be a number"),
        (Reverse, {"seed": -1}, "seed -1 is less than 0"),
        (Reverse, {"scale": 0}, "scale 0 is not greater than 0"),
        (Reverse, {"scale": math.nan}, "scale must be a number"),
        (Reverse, {"scale": "big"}, "scale must be a number, not 'big'"),
        (Constant, {"value": None}, "value must be a number"),
        (Gaussian, {"std": 0}, "std 0 is not greater than 0"),
        (Gaussian, {"mean": math.inf}, "mean must be a number"),
        (Noise, {"std": -1}, "std -1 is not greater than 0"),
        (Stale, {"lag": 0}, "lag 0 is less than 1"),
        (Stale, {"lag": 1.5}, "lag must be an integer"),
        (ALittleIsEnough, {"z": "one"}, "z must be a number"),
        (InnerProduct, {"epsilon": 0}, "epsilon 0 is not greater"),
        (Mimic, {"target": -1}, "target -1 is less than 0"),
        (OptimalInnerProduct, {"limit": 0}, "limit 0 is not greater"),
        (BitFlip, {"count": 0}, "count 0 is less than 1"),
        (BitFlip, {"bits": ()}, "bits must be"),
        (BitFlip, {"bits": (1, 1)}, "bits must be"),
        (BitFlip, {"bits": (-1,)}, "bits must be"),
        (ZeroBlock, {"bytes": 0}, "bytes 0 is less than 1"),
        (Stride, {"every": 0}, "every 0 is less than 1"),
        (Bias, {"relative": 0}, "relative must not be 0"),
        (LabelFlip, {"num_classes": 1}, "num_classes 1 is less than 2"),
    ],
)
def test_bad_parameters_are_refused_when_built(attack, parameters, message):
    with pytest.raises(ValueError, match=f"({attack.__name__}:|placement) .*{message}"):
        attack(**parameters)


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("reverse(scale=100)@1,4", Reverse(100, ranks=(1, 4))),
        ("reverse@1", Reverse(ranks=(1,))),
        (" reverse ( scale = 2 ) @ 4, 1 ", Reverse(2, ranks=(1, 4))),
        ("bit_flip(count=3)@spread:2", BitFlip(3, ranks="spread:2")),
        ("nan@random:5", NaN(ranks="random:5")),
        ("a_little_is_enough@concentrated:2", ALittleIsEnough(ranks="concentrated:2")),
        (
            "noise(std=0.5, probability=0.1, seed=3)@0",
            Noise(0.5, ranks=(0,), probability=0.1, seed=3),
        ),
        ("zero(steps=(2, 5))@0", Zero(ranks=(0,), steps=(2, 5))),
    ],
)
def test_specs(text, attack):
    assert from_spec(text) == attack


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reverse(scale=100)", "names no ranks.*@1,4.*@spread:2"),
        ("reverse@", "names no ranks"),
        ("@1,4", "names no ranks"),
        ("reverse@one", "'one' is neither ranks such as 1,4 nor a placement"),
        ("reverse@1,,4", "is neither ranks"),
        ("reverse@1,1", "a rank twice"),
        ("reverse@spred:2", "is not one of random:COUNT"),
        ("revers@1", "reverse"),
        ("reverse(scal=3)@1", "scale"),
        ("reverse(scale=-3)@1", "not greater than 0"),
        ("label_flip@1", "num_classes"),
    ],
)
def test_bad_specs(text, message):
    with pytest.raises(ValueError, match=message):
        from_spec(text)


@every_attack
def test_every_attack_is_reachable_by_spec(name):
    arguments = ", ".join(f"{key}={value}" for key, value in REQUIRED.get(name, {}).items())
    attack = from_spec(f"{name}({arguments})@spread:2")
    assert type(attack) is ATTACKS[name]
    assert attack == build(name, ranks="spread:2")


# --- the drill -------------------------------------------------------------------------------


def test_honest_ranks_and_steps_send_the_gradient_itself():
    groups = uniform_groups(3, 3)
    own = gradients(D)
    for rank, step in [(0, 5), (1, 4), (1, 6)]:
        liar = FaultyRank(Reverse(ranks=(1,), steps=(5, 6)), rank, groups)
        assert liar.corrupt(step, own) is own
    assert FaultyRank(Reverse(ranks=(1,), steps=(5, 6)), 1, groups).corrupt(5, own) is not own


def test_stale_drill_remembers_lag_gradients_even_when_the_buffer_is_reused():
    liar = FaultyRank(Stale(lag=2, ranks=(1,), steps=(2, 99)), 1, uniform_groups(3, 3))
    buffer = np.empty(4, np.float32)
    sent = []
    for step in range(6):
        buffer[:] = step
        sent.append(int(liar.corrupt(step, buffer)[0]))
    assert sent == [0, 1, 0, 1, 2, 3]


def test_drill_gives_the_honest_copies_of_this_step_to_omniscient_attacks():
    groups = uniform_groups(3, 3)
    everyone = gradients(9, D)
    attack = InnerProduct(0.5, ranks=(1, 4, 7))
    liar = FaultyRank(attack, 4, groups)
    assert liar.needs_everyone
    assert not FaultyRank(Reverse(ranks=(1,)), 1, groups).needs_everyone
    assert liar.faulty_ranks(0) == (1, 4, 7)
    sent = liar.corrupt(0, everyone[4], everyone)
    honest = everyone[[0, 2, 3, 5, 6, 8]]
    np.testing.assert_allclose(sent, -0.5 * honest.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", sorted(n for n, attack in ATTACKS.items() if attack.omniscient))
def test_all_faulty_ranks_of_an_omniscient_attack_send_the_same(name):
    groups, everyone = uniform_groups(3, 3), gradients(9, D)
    faulty = (1, 2, 4)
    attack = by_name(name, ranks=faulty)
    lies = {
        FaultyRank(attack, rank, groups)
        .corrupt(3, everyone[rank], everyone, lambda copies: np.median(copies, axis=0))
        .tobytes()
        for rank in faulty
    }
    assert len(lies) == 1


def test_drill_counts_ranks_and_faults_of_the_step_for_z():
    groups = uniform_groups(5, 3)
    everyone = gradients(15, D)
    sent = FaultyRank(ALittleIsEnough(ranks=(1, 4)), 4, groups).corrupt(0, everyone[4], everyone)
    honest = np.delete(everyone, (1, 4), axis=0)
    expected = honest.mean(axis=0) - largest_safe_z(15, 2) * honest.std(axis=0)
    np.testing.assert_allclose(sent, expected, atol=1e-6)


def test_drill_aggregates_the_lie_of_all_faulty_ranks():
    groups = uniform_groups(3, 3)
    everyone = gradients(9, D)
    before = everyone.copy()
    seen = []

    def aggregate(copies):
        seen.append(copies.copy())
        return copies.mean(axis=0)

    liar = FaultyRank(OptimalInnerProduct(ranks=(1, 4)), 1, groups)
    sent = liar.corrupt(0, everyone[1], everyone, aggregate)
    assert hamming(everyone, before) == 0
    lies = [copies[1] for copies in seen]
    assert any(hamming(sent, lie) == 0 for lie in lies)
    for copies, lie in zip(seen, lies, strict=True):
        expected = before.copy()
        expected[[1, 4]] = lie
        assert hamming(copies, expected) == 0


def test_drill_refuses_what_it_cannot_use():
    groups = uniform_groups(3, 3)
    liar = FaultyRank(InnerProduct(ranks=(1,)), 1, groups)
    with pytest.raises(ValueError, match="needs everyone's gradients"):
        liar.corrupt(0, gradients(D))
    with pytest.raises(ValueError, match=r"shape \(8, 3000\), not \(9, 3000\)"):
        liar.corrupt(0, gradients(D), gradients(8, D))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) is not flat"):
        liar.corrupt(0, gradients(2, 3))
    with pytest.raises(ValueError, match="outside a job of 9 ranks"):
        FaultyRank(Reverse(ranks=(9,)), 0, groups)


def test_group_members_vote_for_a_colluders_lie_once_they_are_a_majority():
    """Two colluders of three outvote the honest member: their copies are equal, bit for bit."""
    groups = uniform_groups(3, 3)
    attack = Gaussian(ranks="concentrated:2", seed=3)
    own = gradients(D)
    faulty = attack.faulty_ranks(0, groups)
    (captured,) = {groups.of(rank) for rank in faulty}
    copies = [
        FaultyRank(attack, r, groups).corrupt(0, own).tobytes() for r in groups.members[captured]
    ]
    assert sorted(copies.count(copy) for copy in copies) == [1, 2, 2]


def test_attacks_import_no_framework():
    code = (
        "import sys, horovod_detox.attacks; "
        "print({'torch', 'tensorflow', 'horovod', 'keras', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

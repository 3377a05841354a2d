"""Faults of hardware: which bits and elements they change."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.attacks import (
    Bias,
    BitFlip,
    Scene,
    Stride,
    Ulp,
    ZeroBlock,
)
from tests.attacks.scenes import bits, every_dtype, gradients, hamming, scene_of, wide


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
    with pytest.raises(ValueError, match=r"bits \(20,\): float16 has 16"):
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

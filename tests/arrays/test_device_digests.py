"""Digests of words on an accelerator: their definition, and which changes they notice."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from horovod_detox.arrays import device_digests  # noqa: E402
from horovod_detox.vote.fingerprint import fingerprint, slice_bounds  # noqa: E402
from tests.fake_device import DeviceTensor, FakeDevice  # noqa: E402
from tests.votes import few_examples  # noqa: E402

EVERY = 1 << 64
LEAST, GREATEST = -(1 << 63), (1 << 63) - 1
words = st.lists(st.integers(LEAST, GREATEST) | st.sampled_from([0, -1, LEAST]), max_size=40)


def digest(values):
    """Return the digest of one slice, as a pair of integers."""
    tensor = torch.tensor(values, dtype=torch.int64)
    return tuple(device_digests.digests([tensor])[0].tolist())


def definition(values):
    """Return the same in Python's integers."""
    first = second = 0
    for i, word in enumerate(values):
        number = 0x9E3779B97F4A7C15 * (2 * i + 1)
        mixed = (word + number) % EVERY
        mixed ^= mixed >> 33
        mixed = mixed * 0xFF51AFD7ED558CCD % EVERY
        mixed ^= mixed >> 33
        mixed = mixed * 0xC4CEB9FE1A85EC53 % EVERY
        mixed ^= mixed >> 33
        first, second = first + mixed, second + mixed * number
    return tuple((total + (1 << 63)) % EVERY - (1 << 63) for total in (first, second))


@given(words)
def test_a_digest_is_what_it_is_defined_as(values):
    assert digest(values) == definition(values)


@given(st.lists(words, min_size=1, max_size=6), st.integers(1, 100))
def test_neither_blocks_nor_other_slices_change_a_digest(slices, block):
    tensors = [torch.tensor(values, dtype=torch.int64) for values in slices]
    digests = device_digests.digests(tensors, block)
    assert [tuple(row) for row in digests.tolist()] == [definition(values) for values in slices]
    for values, tensor in zip(slices, tensors, strict=True):
        assert tensor.tolist() == values


@few_examples
@given(words.filter(len))
def test_every_bit_counts_in_both_sums(values):
    first, second = digest(values)
    flipped = torch.tensor(values).repeat(64 * len(values), 1)
    for bit in range(64 * len(values)):
        flipped[bit, bit // 64] ^= LEAST if bit % 64 == 63 else 1 << bit % 64
    sums = device_digests.digests(flipped)
    assert not (sums == torch.tensor([first, second])).any()


@given(words, st.data())
def test_words_that_change_places_are_noticed(values, data):
    swapped = data.draw(st.permutations(values))
    assert (digest(swapped) == digest(values)) == (swapped == values)


@pytest.mark.parametrize("bit", [LEAST, 1 << 62, 1 << 31, 1])
@pytest.mark.parametrize("background", ["zeros", "normal"])
def test_no_two_small_changes_have_a_sum_in_common(bit, background):
    """The same bit in up to two of 48 words: the highest is the one that weak sums cancel."""
    base = np.zeros(48) if background == "zeros" else np.random.default_rng(0).normal(size=48)
    changes = [(), *combinations(range(48), 1), *combinations(range(48), 2)]
    copies = torch.from_numpy(base.view(np.int64)).repeat(len(changes), 1)
    for i, places in enumerate(changes):
        copies[i, list(places)] ^= bit
    for sums in device_digests.digests(copies).T:
        assert len(sums.unique()) == len(changes)


def test_bits_that_floats_do_not_tell_apart_are_noticed():
    patterns = np.array([0x7FC00000, 0x7FC00001, -0x3FFFFF, -(2**31), 0], np.int32)
    copies = [torch.from_numpy(np.array([0, pattern], np.int32)) for pattern in patterns]
    digests = device_digests.digests(copy.view(torch.int64) for copy in copies)
    assert len(digests.unique(dim=0)) == len(patterns)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_other_dtypes_count_by_their_bits(dtype):
    copy = torch.arange(5).to(dtype)
    before = device_digests.digests([copy, copy[:4], torch.arange(5)])
    assert len(before.unique(dim=0)) == (2 if dtype == torch.uint8 else 3)
    bits = 8 * copy.element_size()
    flipped = copy.view(torch.uint8).repeat(5 * bits, 1)
    for bit in range(5 * bits):
        flipped[bit, bit // 8] ^= 1 << bit % 8
    assert not (device_digests.digests(flipped.view(dtype)) == before[0]).any()


def test_zeros_of_another_length_are_another_slice():
    lengths = [torch.zeros(length, dtype=torch.int64) for length in range(200)]
    for sums in device_digests.digests(lengths).T:
        assert len(sums.unique()) == 200


def test_fingerprints_on_a_device_are_these():
    values = np.random.default_rng(0).integers(LEAST, GREATEST, 100)
    for parts in (1, 7, 150):
        bounds = slice_bounds(100, parts)
        with FakeDevice():
            found = fingerprint(DeviceTensor(torch.from_numpy(values)), bounds)
        assert found.dtype == np.int64
        expected = [definition(values[start:stop].tolist()) for start, stop in bounds]
        assert [tuple(row) for row in found.tolist()] == expected

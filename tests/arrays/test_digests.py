"""NH in main memory and on an accelerator: its definition, and which changes it notices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.arrays import host_digests
from horovod_detox.arrays.blocks import finite_rows
from horovod_detox.arrays.namespaces import NumPyNamespace
from horovod_detox.arrays.nh import BLOCK, WORDS, Key, levels
from tests.votes import few_examples

torch = pytest.importorskip("torch")

from horovod_detox.arrays import device_digests  # noqa: E402
from horovod_detox.vote.fingerprint import Fingerprints, slice_bounds  # noqa: E402

EVERY = 1 << 64
HALF = 1 << 32
LEAST, GREATEST = -(1 << 63), (1 << 63) - 1
KEY = Key(b"a secret")
words = st.lists(st.integers(LEAST, GREATEST) | st.sampled_from([0, -1, LEAST]), max_size=40)
lengths = st.integers(0, 40) | st.sampled_from(
    [BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3, BLOCK * BLOCK // 2, BLOCK * BLOCK // 2 + 1]
)


def definition(values, key=KEY, level=0):
    """Return the digest in Python's integers."""
    if not values:
        return (0, 0)
    low, high = key.halves(level + 1)[level].tolist()
    sums = []
    for start in range(0, len(values), BLOCK):
        block = [value % EVERY for value in values[start : start + BLOCK]]
        for shift in range(WORDS):
            terms = (
                (word % HALF + low[i + shift]) % HALF * ((word // HALF + high[i + shift]) % HALF)
                for i, word in enumerate(block)
            )
            sums.append(sum(terms) % EVERY)
    if len(values) > BLOCK:
        return definition(sums, key, level + 1)
    return tuple((total + (1 << 63)) % EVERY - (1 << 63) for total in sums)


def on_host(slices, key=KEY):
    digests, _ = host_digests.digests([np.array(values, np.int64) for values in slices], key)
    return [tuple(row) for row in digests.tolist()]


def on_device(slices, accelerator, most_words=1 << 20):
    with accelerator.entered():
        tensors = [accelerator.place(torch.tensor(v, dtype=torch.int64)) for v in slices]
        digests = device_digests.digests(tensors, KEY, most_words)
    return [tuple(row) for row in accelerator.values(digests).tolist()]


@given(st.lists(words, min_size=1, max_size=6), st.integers(1, 3 * BLOCK))
def test_a_digest_is_what_it_is_defined_as(accelerator, slices, most_words):
    expected = [definition(values) for values in slices]
    assert on_host(slices) == expected
    assert on_device(slices, accelerator, most_words) == expected


@few_examples
@given(st.lists(lengths, min_size=1, max_size=3), st.integers(0, 1000))
def test_a_tree_is_what_it_is_defined_as(accelerator, widths, seed):
    random = np.random.default_rng(seed)
    slices = [random.integers(LEAST, GREATEST, width).tolist() for width in widths]
    expected = [definition(values) for values in slices]
    assert on_host(slices) == expected
    assert on_device(slices, accelerator, most_words=3000) == expected


@pytest.mark.parametrize("width", [1, 3, BLOCK + 2])
@pytest.mark.parametrize("digests", [lambda slices, _: on_host(slices), on_device])
def test_every_bit_of_a_word_counts(accelerator, digests, width):
    values = np.random.default_rng(0).integers(LEAST, GREATEST, width)
    copies = [values]
    for place in {0, 1, width - 2, width - 1} & set(range(width)):
        for bit in range(64):
            flipped = values.copy()
            flipped.view(np.uint64)[place] ^= np.uint64(1 << bit)
            copies.append(flipped)
    found = digests([copy.tolist() for copy in copies], accelerator)
    assert len(set(found)) == len(copies)


@pytest.mark.parametrize("pattern", [0, 1 << 31, 1 << 63, 0x3F800000_3F800000])
def test_small_changes_of_many_places_are_noticed(pattern):
    """What sums without a key take for the same: the same bit in up to two of many words."""
    copies = [[pattern] * 24]
    for i in range(24):
        for j in range(i + 1):
            copies.append([word ^ (1 << 31) * (k in (i, j)) for k, word in enumerate(copies[0])])
    copies = [[(word + (1 << 63)) % EVERY - (1 << 63) for word in copy] for copy in copies]
    assert len(set(on_host(copies))) == len(copies)


def test_keys_differ_between_levels_and_secrets():
    halves = KEY.halves(3)
    assert halves.shape == (3, 2, BLOCK + 1)
    assert len(np.unique(halves)) > 0.99 * halves.size
    assert not (halves == Key(b"another").halves(3)).any()
    assert (Key(b"a secret").halves(1)[0] == halves[0]).all()
    assert halves.max() < HALF


def test_levels_bound_the_probability_of_a_collision():
    assert [levels(n) for n in (0, 1, 512, 513, 1 << 17, 1 << 18, 1 << 25)] == [1, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_a_glance_finds_all_that_is_not_finite(dtype):
    numpy_dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    random = np.random.default_rng(0)
    values = random.standard_normal(4000).astype(numpy_dtype)
    copies = [values]
    for wrong in (
        np.nan,
        -np.nan,
        np.inf,
        -np.inf,
        *([2e145, -1e200] if dtype == "float64" else []),
    ):
        for place in random.integers(0, len(values), 5):
            copies.append(values.copy())
            copies[-1][place] = wrong
    slices = [copy.view(np.int64) for copy in copies]
    _, finite = NumPyNamespace().digests(slices, KEY, dtype)
    assert (
        finite.tolist()
        == finite_rows(np.stack(copies)).tolist()
        == [True] + [False] * (len(copies) - 1)
    )


def test_a_glance_does_not_say_what_it_cannot_see():
    slices = [np.zeros(3, np.int64)]
    assert not NumPyNamespace().digests(slices, KEY)[1].any()
    assert not NumPyNamespace().digests(slices, KEY, "int32")[1].any()
    # Of float64 it may take for too large what is not, but never the other way round.
    numbers = np.array([1e144, 9e144, 1e145, 1e146])
    _, small = NumPyNamespace().digests(list(numbers.view(np.int64)[:, None]), KEY, "float64")
    assert small.tolist() == [True, False, False, False]


def test_fingerprints_on_a_device_are_those_in_main_memory(accelerator):
    values = np.random.default_rng(0).integers(LEAST, GREATEST, 3000)
    fingerprints = Fingerprints(bytes(32), 5)
    for parts in (1, 7, 150):
        bounds = slice_bounds(3000, parts)
        with accelerator.entered():
            found = fingerprints.of(accelerator.place(torch.from_numpy(values)), bounds)
        assert found.dtype == np.int64
        assert (found == fingerprints.of(values, bounds)).all()

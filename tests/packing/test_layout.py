"""The layout: buffers of any dtypes in whole words, and lists compared in words."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.packing.layout import Layout, difference
from horovod_detox.vote.fingerprint import slice_bounds

DTYPES = ["float16", "bfloat16", "float32", "float64"]
PARAMETERS = st.lists(
    st.tuples(
        st.text("ab", min_size=1),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.sampled_from(DTYPES),
    ),
    max_size=6,
).map(tuple)


@given(PARAMETERS)
def test_packing_and_typed_views_are_inverse(parameters):
    layout = Layout(parameters)
    buffers = [
        np.arange(segment.length).astype(
            ml_dtypes.bfloat16 if segment.dtype == "bfloat16" else segment.dtype
        )
        for segment in layout.buffers.segments
    ]
    words = layout.pack(buffers)
    assert len(words) == sum(-(-buffer.nbytes // 8) for buffer in buffers)
    for buffer, again in zip(buffers, layout.typed(words), strict=True):
        assert again.dtype == buffer.dtype
        assert np.array_equal(again, buffer)
        assert len(buffer) == 0 or np.shares_memory(again, words)


@given(PARAMETERS)
def test_places_fill_the_segments_without_gaps(parameters):
    layout = Layout(parameters)
    for index, segment in enumerate(layout.buffers.segments):
        spans = [(start, stop) for s, start, stop in layout.places if s == index]
        filled = [i for start, stop in spans for i in range(start, stop)]
        assert filled == list(range(segment.length))


@given(PARAMETERS, st.integers(1, 7))
def test_slices_hold_the_numbers_of_the_whole_and_no_padding(parameters, parts):
    layout = Layout(parameters)
    words = np.arange(1, 1 + layout.words) * 0x0101_0101_0101_0101
    found = {segment.dtype: [] for segment in layout.buffers.segments}
    for start, stop in slice_bounds(layout.words, parts):
        part = layout.buffers.cut(start, stop)
        for segment, numbers in zip(part.segments, part.typed(words[start:stop]), strict=True):
            found[segment.dtype] += numbers.tobytes()
    for segment, whole in zip(layout.buffers.segments, layout.typed(words), strict=True):
        assert bytes(found[segment.dtype]) == whole.tobytes()


@given(PARAMETERS, PARAMETERS)
def test_digests_differ_exactly_when_layouts_do(first, second):
    assert (Layout(first).digest == Layout(second).digest) == (first == second)


@given(PARAMETERS, PARAMETERS)
def test_a_difference_is_told_exactly_when_there_is_one(first, second):
    lists = [[list(map(str, entry)) for entry in parameters] for parameters in (first, second)]
    assert (difference(lists) == "") == (first == second)


def test_the_path_in_a_name_is_for_messages_only():
    def layout(name, shape=(2,)):
        return Layout(((f"0 {name}", shape, "float32"),))

    assert layout("dense/kernel").digest == layout("model/dense_1/kernel").digest
    assert layout("dense/kernel").digest != layout("dense/bias").digest
    lists = [layout("dense/kernel").parameters, layout("model/dense/kernel", (3,)).parameters]
    assert difference(lists) == (
        "rank 0 has 0 dense/kernel (2,) float32 where rank 1 has 0 model/dense/kernel (3,) float32"
    )


def test_integers_cannot_be_gradients():
    with pytest.raises(ValueError, match="step is int64, but must be one of float16"):
        Layout((("step", (1,), "int64"),))

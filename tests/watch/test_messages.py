"""What may come over the channel: what no rank sends is refused, and says why."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.watch.beats import (
    CALM,
    GONE,
    MOST_BYTES,
    MOST_TEXT,
    STOPPED,
    URGENT,
    WAITS,
    BadMessage,
    Beat,
    Finding,
    Seen,
    Waiting,
)

BEAT = Beat(3, 0.5, "at train.py:4", 1.5, Waiting("x", (1, 2), 2.0), {2: Seen(STOPPED)}, "")
FINDING = Finding("rank 2 has left", 2, "x", (2,))
numbers = st.floats(0, 1e9)
beats = st.builds(
    Beat,
    st.integers(0, 2**50),
    numbers,
    st.text(st.characters(categories=["L", "N", "P"]), max_size=MOST_TEXT),
    numbers,
    st.none() | st.builds(Waiting, st.just("x"), st.lists(st.integers(0, 99)).map(tuple), numbers),
    st.dictionaries(st.integers(0, 99), st.builds(Seen, st.just(STOPPED), numbers)),
)


@given(beats)
def test_what_is_sent_arrives(beat):
    assert Beat.from_bytes(beat.to_bytes()) == beat


def test_beats_say_whether_they_need_be_read():
    assert Beat().to_bytes()[:1] == Beat(waiting=Waiting("x", (), 0.1)).to_bytes()[:1] == CALM
    assert BEAT.to_bytes()[:1] == WAITS
    assert Beat(left="x").to_bytes()[:1] == Beat(seen={1: Seen(GONE)}).to_bytes()[:1] == URGENT


def test_findings_arrive():
    assert Finding.from_bytes(FINDING.to_bytes()) == FINDING


WRONG = {
    "step": ["3", -1, 1.5, True, None, 2**60],
    "median": ["x", -0.1, None, float("inf"), float("nan")],
    "place": [None, 3, "x" * (MOST_TEXT + 1)],
    "waiting": [3, {}, {"what": "x", "ranks": [-1], "seconds": 1}, {"what": 1, "ranks": []}],
    "seen": [None, [], {"x": {}}, {"1": {"state": "asleep", "still": 0, "hint": ""}}],
    "left": [None, 1, ["x"]],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in WRONG.items() for v in vs])
def test_beats_with_a_wrong_field_are_refused(field, value):
    told = json.loads(BEAT.to_bytes()[1:]) | {field: value}
    with pytest.raises(BadMessage):
        Beat.from_bytes(CALM + json.dumps(told).encode())
    del told[field]
    with pytest.raises(BadMessage, match=field):
        Beat.from_bytes(CALM + json.dumps(told).encode())


@pytest.mark.parametrize("message", [BEAT.to_bytes(), FINDING.to_bytes()])
@pytest.mark.parametrize("read", [Beat.from_bytes, Finding.from_bytes])
def test_torn_messages_are_refused(message, read):
    for stop in range(len(message)):
        with pytest.raises(BadMessage):
            read(message[:stop])


@pytest.mark.parametrize("read", [Beat.from_bytes, Finding.from_bytes])
@pytest.mark.parametrize(
    "message", [b"\x80\x04.", b"[" * 9000, b" " * (MOST_BYTES + 1), b"\xff", b"3", b"{}", b"[]"]
)
def test_what_no_rank_sends_is_refused(read, message):
    with pytest.raises(BadMessage):
        read(message)


def test_what_is_told_cannot_write_more_than_a_line():
    assert "\n" not in Beat.from_bytes(Beat(place="a\nb\x1b[31m").to_bytes()).place

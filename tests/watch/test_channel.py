"""Who is heard: the ranks of the job, and nobody else; nothing that strangers send does harm."""

import logging
import socket
import time

import pytest
import zmq

from horovod_detox.watch.beats import MOST_BYTES
from horovod_detox.watch.channel import LOOPBACK, Hub, Spoke, address


@pytest.fixture
def context():
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def hub(context):
    made = Hub(LOOPBACK, context)
    yield made
    made.close()


def received(hub, seconds=1.0, most=1):
    """Return what a hub receives in some time; at once, if that is as much as is wanted."""
    found, end = [], time.monotonic() + seconds
    while len(found) < most and time.monotonic() < end:
        hub.socket.poll(50)
        found += hub.receive()
    return found


def spoke(hub, context, keys):
    return Spoke(hub.endpoints, hub.public_key, keys, context)


def test_a_rank_is_known_by_its_key(hub, context):
    keys = [zmq.curve_keypair() for _ in range(3)]
    hub.admit([public.decode() for public, _ in keys])
    spokes = [spoke(hub, context, each) for each in keys]
    for number in (2, 0, 1):
        spokes[number].send(b"hello %d" % number)
    heard = received(hub, 5, 3)
    assert sorted(heard) == [(rank, b"hello %d" % rank) for rank in range(3)]
    hub.tell(b"back", is_lasting=False)
    for each in spokes:
        assert each.socket.poll(5000)
        assert list(each.receive()) == [b"back"]
        each.send(b"fire", is_urgent=True)
    assert hub.alarm.poll(5000)
    for each in spokes:
        each.close()
    end = time.monotonic() + 5
    ended = set()
    while len(ended) < 3 and time.monotonic() < end:
        ended |= {*hub.ended()}
        time.sleep(0.02)
    assert ended == {0, 1, 2}


def test_who_comes_before_all_ranks_are_known_is_heard_then(hub, context):
    keys = zmq.curve_keypair()
    early = spoke(hub, context, keys)
    early.send(b"early")
    assert received(hub, 0.3) == []
    hub.admit([keys[0].decode()])
    assert received(hub, 5) == [(0, b"early")]
    early.close()


def test_who_has_only_told_what_is_urgent_is_told_of_others(hub, context):
    """As a rank whose neighbour dies before its first beat."""
    keys = zmq.curve_keypair()
    hub.admit([keys[0].decode()])
    alarmed = spoke(hub, context, keys)
    alarmed.send(b"fire", is_urgent=True)
    assert received(hub, 5, 2) == [(0, b"fire")] * 2
    hub.tell(b"rank 2 has left", is_lasting=False)
    assert alarmed.socket.poll(5000)
    assert list(alarmed.receive()) == [b"rank 2 has left"]
    alarmed.close()


def test_who_is_heard_late_hears_what_was_told_before(hub, context):
    keys = zmq.curve_keypair()
    hub.admit([keys[0].decode()])
    hub.tell(b"news", is_lasting=True)
    hub.tell(b"of the moment", is_lasting=False)
    late = spoke(hub, context, keys)
    late.send(b"here I am")
    assert received(hub, 5) == [(0, b"here I am")]
    assert late.socket.poll(5000)
    assert list(late.receive()) == [b"news"]
    late.close()


def test_strangers_are_refused_and_told_of_once(hub, context, caplog):
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    keys = zmq.curve_keypair()
    hub.admit([keys[0].decode()])
    honest = spoke(hub, context, keys)
    strangers = [spoke(hub, context, zmq.curve_keypair()) for _ in range(3)]
    wrong_server = Spoke(hub.endpoints, zmq.curve_keypair()[0].decode(), keys, context)
    plain = context.socket(zmq.DEALER)
    plain.connect(hub.endpoints[0])
    for each in (*strangers, wrong_server):
        each.send(b"let me in")
    plain.send(b"let me in", zmq.NOBLOCK)
    host, port = hub.endpoints[0].removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with socket.create_connection((host, int(port)), timeout=5):  # and says nothing
            honest.send(b"it is me")
            assert received(hub, 5) == [(0, b"it is me")]
            assert received(hub, 0.5) == []
    told = [text for text in caplog.messages if "is not a rank of this job" in text]
    assert len(told) == 1
    for each in (honest, *strangers, wrong_server):
        each.close()
    plain.close(linger=0)


def test_a_message_that_is_too_long_does_not_arrive(hub, context):
    keys = zmq.curve_keypair()
    hub.admit([keys[0].decode()])
    rank = spoke(hub, context, keys)
    rank.send(b"x" * (MOST_BYTES + 100))
    assert received(hub, 0.5) == []
    rank.send(b"short")
    assert received(hub, 10) == [(0, b"short")]
    rank.close()


def test_a_recorded_conversation_that_is_sent_again_says_nothing(hub, context):
    """Whoever can read and repeat what is on the wire: keys of a connection are its own."""
    keys = zmq.curve_keypair()
    hub.admit([keys[0].decode()])
    recorded = bytearray()
    host, port = hub.endpoints[0].removeprefix("tcp://").split(":")
    with socket.create_server((LOOPBACK, 0)) as between:
        by_way_of = f"tcp://{LOOPBACK}:{between.getsockname()[1]}"
        rank = Spoke((by_way_of, hub.endpoints[1]), hub.public_key, keys, context)
        rank.send(b"once")
        near, _ = between.accept()
        far = socket.create_connection((host, int(port)))
        near.settimeout(0.02)
        far.settimeout(0.02)
        heard, end = [], time.monotonic() + 10
        while not heard and time.monotonic() < end:
            for source, sink in ((near, far), (far, near)):
                try:
                    piece = source.recv(65536)
                except TimeoutError:
                    continue
                sink.sendall(piece)
                if source is near:
                    recorded += piece
            heard = list(hub.receive())
        assert heard == [(0, b"once")]
        rank.close()
        near.close()
        far.close()
    with socket.create_connection((host, int(port))) as again:
        again.sendall(recorded)
        assert received(hub, 1.0) == []


def test_the_address_of_one_host_is_its_loopback_and_of_several_is_on_the_way():
    assert address("a", ["a", "a"]) == LOOPBACK
    assert address("a", ["a", "localhost"]) in {LOOPBACK, "::1"}
    assert address("a", ["a", "no-such-host.invalid"]) == LOOPBACK

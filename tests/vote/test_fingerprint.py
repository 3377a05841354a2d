"""What a vote compares: every bit counts, and who does not know the secret forges nothing."""

import hashlib
import itertools
import threading

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.arrays.nh import Key
from horovod_detox.engine import Engine
from horovod_detox.exchange import control
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.vote.fingerprint import FUNCTIONS, Fingerprints, digest, labels, slice_bounds
from tests.cluster import layout_of

SECRET = bytes(range(32))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_a_fingerprint_changes_with_any_bit(function, dtype):
    words = np.arange(48).astype(dtype).view(np.int64)[:10]
    bounds = slice_bounds(len(words), 3)
    fingerprints = Fingerprints(SECRET, 0, function)
    before = fingerprints.of(words, bounds)
    for bit in range(64 * len(words)):
        flipped = words.copy()
        flipped.view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
        changed = (fingerprints.of(flipped, bounds) != before).any(axis=1)
        assert changed.tolist() == [start <= bit // 64 < stop for start, stop in bounds]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_secret_step_and_length_count(function):
    words = np.arange(1, 40)
    secrets = [SECRET, bytes(32)]
    digests = [
        Fingerprints(secret, step, function).of(words[:length], [(0, length)])
        for secret, step, length in itertools.product(secrets, range(3), (0, 5, 39))
    ]
    kinds = 18 if function == "blake3" else 13  # NH of nothing is nothing
    assert len(np.unique(np.concatenate(digests), axis=0)) == kinds


def test_blake3_binds_a_slice_to_its_place():
    blake3 = pytest.importorskip("blake3").blake3
    words = np.tile(np.arange(5), 2)
    first, second = Fingerprints(SECRET, 7, "blake3").of(words, [(0, 5), (5, 10)])
    key = hashlib.blake2b((7).to_bytes(8), key=SECRET, digest_size=32).digest()
    expected = blake3((0).to_bytes(8) + words[:5].tobytes(), key=key).digest(length=16)
    assert first.tobytes() == expected != second.tobytes()


def test_the_same_bits_have_the_same_label():
    random = np.random.default_rng(0)
    bounds = slice_bounds(6, 3)
    for _ in range(200):
        copies = [np.repeat(random.integers(0, 2, 3), 2) for _ in range(5)]
        copies[3] = copies[1]
        expected = [
            [next(j for j in range(5) if copies[j][s * 2] == copy[s * 2]) for s in range(3)]
            for copy in copies
        ]
        assert labels(copies, bounds).tolist() == expected


def test_a_digest_is_that_of_the_bytes():
    data = np.arange(5, dtype=np.float32)
    assert (digest(data) == digest(data.view(np.uint8))).all()
    assert (digest(data) != digest(data + 0.5)).any()
    assert (digest(data.reshape(1, 5).T) == digest(data)).all()


def exchange_with_a_forger(detox, ranks=6, liar=4):
    """Let one rank send what has the fingerprint of the truth under keys that all can know."""
    forge = pytest.importorskip("tests.forger").forge
    layout = layout_of(np.zeros(1200, np.float32))
    truth = np.random.default_rng(0).standard_normal(1200, np.float32).view(np.int64)
    public = Fingerprints(SECRET, 0)._nh_key

    def program(collectives):
        copy = truth.copy()
        if collectives.rank == liar:
            for start, stop in slice_bounds(len(copy), ranks):
                copy[start:stop] = forge(copy[start:stop], public)
        assert (copy == truth).all() == (collectives.rank != liar)
        engine = Engine(plan, collectives)
        outcome = engine.exchange(copy, layout)
        return outcome.verdict.dissenters, (outcome.update == truth).all()

    plan = detox.plan(ranks)
    return InProcessCluster(ranks, 20.0).run(program)


EXCHANGES = [
    {"one_round_bytes": 0},
    {"one_round_bytes": 1 << 20},
    {"exchange": "leaders"},
    {"one_round_bytes": 0, "fingerprint": "blake3"},
    {"one_round_bytes": 0, "witnesses": 1},
]


@pytest.mark.parametrize("fields", EXCHANGES)
def test_a_forger_without_the_secret_is_named(fields):
    assert exchange_with_a_forger(Detox(group_size=3, **fields)) == [((4,), True)] * 6


@pytest.mark.parametrize("fields", EXCHANGES)
def test_a_forger_with_the_secret_fools_nh_and_nothing_else(fields, monkeypatch):
    """Show that the test above can fail."""
    introduce = control.Control.introduce
    monkeypatch.setattr(control.Control, "introduce", lambda self: introduce(self) and SECRET)
    is_fooled = fields in ({"one_round_bytes": 0}, {"one_round_bytes": 0, "witnesses": 1})
    dissenters = () if is_fooled else (4,)
    found = exchange_with_a_forger(Detox(group_size=3, **fields))
    assert [names for names, _ in found] == [dissenters] * 6
    assert all(right for _, right in found) == (not is_fooled)


def test_the_forger_makes_lies_that_matter():
    forge = pytest.importorskip("tests.forger").forge
    truth = np.random.default_rng(1).standard_normal(512, np.float32)
    key = Key(b"known")
    lie = forge(truth.view(np.int64), key).view(np.float32)
    assert np.isfinite(lie).all()
    assert abs(lie - truth).max() > 1


def test_every_rank_gives_to_the_secret_and_nobody_decides_it(monkeypatch):
    """Equal on all ranks, new for every engine, and random if only one rank's generator is."""
    broken = {"ranks": set()}
    here = threading.local()
    urandom = control.os.urandom

    def program(collectives):
        engine = Engine(Detox(group_size=1, outer="mean").plan(4), collectives)
        layout = layout_of(np.zeros(3, np.float32))
        here.rank = collectives.rank
        engine.exchange(layout.pack([np.zeros(3, np.float32)]), layout)
        return engine._secret or b""

    def read(size):
        return bytes(size) if here.rank in broken["ranks"] else urandom(size)

    monkeypatch.setattr(control.os, "urandom", read)
    secrets = []
    for ranks in ((), (0,), (1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)):
        broken["ranks"] = set(ranks)
        (secret,) = set(InProcessCluster(4).run(program))
        assert len(secret) == 32
        secrets.append(secret)
    assert len(set(secrets)) == 4
    assert secrets[3] == secrets[4]  # all generators are broken

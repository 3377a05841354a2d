"""Slices that arrive otherwise than they were sent: who is named, and that the job goes on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.collectives import Message
from horovod_detox.exchange.step import NoMajority
from measuring.traffic import Traffic
from tests.cluster import layout_of

WIDTH = 3000
LAYOUT = layout_of(np.zeros(WIDTH, np.float32))
pytestmark = pytest.mark.usefixtures("small_blocks")


class Wire:
    """The seam of one rank, whose transport changes words that it sends or receives.

    Args:
        collectives: of the rank.
        sent: is called with the name of an alltoall, the receiver and the words for it.
        received: with the name of any collective, the sender and its words.
    """

    def __init__(self, collectives, sent=None, received=None):
        self._collectives = collectives
        self._sent, self._received = sent, received
        self.rank, self.size = collectives.rank, collectives.size

    def allgather(self, name, facts):
        return self._collectives.allgather(name, facts)

    def alltoall(self, name, facts, parts, spare=None):
        if self._sent:
            parts = [self._sent(name, receiver, part) for receiver, part in enumerate(parts)]
        return self._changed(name, self._collectives.alltoall(name, facts, parts, spare))

    def allgather_words(self, name, facts, words):
        return self._changed(name, self._collectives.allgather_words(name, facts, words))

    def broadcast(self, name, words, root):
        handle = self._collectives.broadcast(name, words, root)

        def write(_):
            if self._received:
                words[:] = self._received(name, root, words)

        return Later(handle, write)

    def _changed(self, name, handle):
        def change(messages):
            if not self._received:
                return messages
            return [
                Message(message.facts, self._received(name, sender, message.words))
                for sender, message in enumerate(messages)
            ]

        return Later(handle, change)


class Later:
    def __init__(self, handle, change):
        self._handle, self._change = handle, change

    def is_done(self):
        return self._handle.is_done()

    def wait(self):
        return self._change(self._handle.wait())


def stuck(words, bit=1 << 40):
    """Return words of which the first ones have one bit set."""
    changed = words.copy()
    changed[:40] |= bit
    return changed


def run(detox, ranks, wires: dict[int, dict[str, Callable[..., Any]]], steps=4):
    """Return by rank: the update of every step, the report, and the operations of each step."""
    plan = detox.plan(ranks)

    def program(collectives):
        traffic = Traffic()
        seam: Any = traffic.watch(collectives)
        if collectives.rank in wires:
            seam = Wire(seam, **wires[collectives.rank])
        engine = Engine(plan, seam)
        updates, counts = [], []
        for step in range(steps):
            random = np.random.default_rng([step, plan.groups.of(collectives.rank)])
            words = LAYOUT.pack([random.standard_normal(WIDTH, np.float32)])
            before = len(traffic.calls)
            updates.append(exchange(engine, words).tobytes())
            counts.append(len(traffic.calls) - before)
        return updates, engine.ledger.report(), counts

    return InProcessCluster(ranks, 20.0).run(program)


def exchange(engine, words):
    if len(engine.parts(LAYOUT)) == 1:
        return engine.exchange(words, LAYOUT).update
    begun = engine.begin(words, LAYOUT, np.empty_like(words))
    for part in range(len(engine.parts(LAYOUT))):
        begun.send(part)
        begun.advance()
    return engine.finish(begun).update


WAYS = {
    "whole": {},
    "parts": {"overlap_bytes": 4000},
    "krum": {"outer": "krum"},
    "krum in parts": {"outer": "multi_krum", "overlap_bytes": 4000},
    "witnesses": {"witnesses": 2},
    "mean": {"outer": "mean"},
}


def settings_of(way):
    return Detox(group_size=3, **{"one_round_bytes": 0, "overlap_bytes": 0, **WAYS[way]})


def of_slices(change):
    """Return what changes slices that are received, and nothing else."""
    return lambda name, sender, words: change(words) if name.startswith(SLICES) else words


SLICES = ("slices", "repairs", "evidence")


@pytest.mark.parametrize("bad", [0, 4])
@pytest.mark.parametrize("way", WAYS)
def test_a_bad_receiver_is_named_and_nobody_else(way, bad):
    """A stuck bit in what it receives from others, in whatever way, or only from one to another."""
    detox = settings_of(way)
    fair = run(detox, 9, {})
    for hears_evidence in (False, True):

        def received(name, sender, words, hears=hears_evidence):
            return words if hears and name.startswith("evidence") else stuck(words)

        wires = {bad: {"received": lambda *a: received(*a) if a[0].startswith(SLICES) else a[2]}}
        for updates, report, counts in run(detox, 9, wires):
            assert updates == fair[0][0]
            assert report.dissents == {}
            assert report.suspicions == {}
            assert set(report.receptions) == {bad}
            assert report.receptions[bad] == 1
            if way != "witnesses":  # as a witness, it goes on to compute from what it received
                assert report.miscalculations == {}
                assert counts[2:] == fair[0][2][2:]  # it owns nothing any more


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_sender_is_named_and_nobody_else(way):
    detox = settings_of(way)
    fair = run(detox, 9, {})

    for to_itself in (False, True):

        def sent(name, receiver, words, to_itself=to_itself):
            is_changed = name.startswith(SLICES) and (receiver != 4 or to_itself)
            return stuck(words) if is_changed else words

        for updates, report, counts in run(detox, 9, {4: {"sent": sent}}):
            assert updates == fair[0][0]
            assert report.dissents == {4: 1}
            assert (report.receptions, report.suspicions, report.miscalculations) == ({}, {}, {})
            assert counts[1:] == fair[0][2][1:]  # others send for it


SENDER = 4
"""Of its group's ranks 1, 4 and 7 it sends slice 2, as others are dealt in turn: 0, 2, 3, ..."""


def test_where_it_shows_to_all_what_it_sends_one_accuser_is_enough():
    """A sender of bad memory: a slice that goes to one owner is wrong for all who see it."""
    detox = settings_of("whole")
    fair = run(detox, 9, {})

    class BadMemory(Wire):
        def broadcast(self, name, words, root):
            if name.startswith("evidence") and root == self.rank:
                words[:] = stuck(words)
            return super().broadcast(name, words, root)

    def program(collectives):
        seam: Any = collectives
        if collectives.rank == SENDER:
            seam = BadMemory(
                collectives, sent=lambda name, to, words: stuck(words) if to == 2 else words
            )
        plan = detox.plan(9)
        engine = Engine(plan, seam)
        random = np.random.default_rng([0, plan.groups.of(collectives.rank)])
        words = LAYOUT.pack([random.standard_normal(WIDTH, np.float32)])
        return engine.exchange(words, LAYOUT).update.tobytes(), engine.ledger.report()

    for update, report in InProcessCluster(9).run(program):
        assert update == fair[0][0][0]
        assert (report.dissents, report.receptions, report.suspicions) == ({SENDER: 1}, {}, {})


@pytest.mark.parametrize("way", ["whole", "parts", "krum"])
def test_a_single_flip_on_the_way_makes_two_suspects_and_blames_nobody(way):
    detox = settings_of(way)
    fair = run(detox, 9, {})
    flips = []

    def received(name, sender, words):
        if name.startswith("slices") and sender == 0 and len(words) and not flips:
            flips.append(sender)
            return words ^ 4
        return words

    for updates, report, counts in run(detox, 9, {1: {"received": received}}):
        assert updates == fair[0][0]
        assert (report.dissents, report.receptions) == ({}, {})
        assert report.suspicions == {0: 1, 1: 1}
        assert counts[1:] == fair[0][2][1:]


def test_a_second_accusation_in_another_step_tells_who_it_is():
    """A suspected sender is not asked again; of another, the same receiver says the same."""
    detox = Detox(group_size=3, outer="mean", one_round_bytes=0, overlap_bytes=0)
    fair = run(detox, 6, {})

    def received(name, sender, words):
        return stuck(words) if name.startswith("slices") and sender != 1 else words

    for updates, report, _ in run(detox, 6, {1: {"received": received}}):
        assert updates == fair[0][0]
        assert (report.dissents, report.receptions) == ({}, {1: 1})
        assert report.suspicions == {0: 1, 1: 1}
        assert report.spans["reception"] == {1: (1, 1)}


def test_a_group_nobody_of_which_sends_rightly_has_no_vote():
    """Without redundancy there is nobody to send for a liar: it loses its vote, and is named."""
    detox = Detox(group_size=1, outer="median", one_round_bytes=0, overlap_bytes=0)

    def sent(name, receiver, words):
        return stuck(words) if name.startswith(SLICES) and receiver != 2 else words

    for updates, report, _ in run(detox, 5, {2: {"sent": sent}}, steps=2):
        assert len(updates) == 2
        assert report.dissents == {2: 2}
        assert report.abstentions == {2: 2}
        assert report.skipped == 0


def test_a_bad_sender_and_a_bad_receiver_without_redundancy():
    detox = Detox(group_size=1, outer="median", one_round_bytes=0, overlap_bytes=0)

    def sent(name, receiver, words):
        return stuck(words) if name.startswith(SLICES) and receiver != 2 else words

    wires = {2: {"sent": sent}, 4: {"received": of_slices(stuck)}}
    for updates, report, _ in run(detox, 6, wires, steps=2):
        assert len(updates) == 2
        assert set(report.dissents) == {2}
        assert set(report.receptions) == {4}


def test_several_bad_receivers_one_after_another():
    detox = settings_of("parts")
    fair = run(detox, 9, {})
    bad = {"received": of_slices(stuck)}
    for updates, report, _ in run(detox, 9, {0: bad, 3: bad, 8: bad}):
        assert updates == fair[0][0]
        assert (report.dissents, report.suspicions) == ({}, {})
        assert set(report.receptions) == {0, 3, 8}


def test_all_parts_of_a_lie_are_repaired_at_once():
    plan = settings_of("parts").plan(9)

    class Watched(Wire):
        events: list[str]

        def alltoall(self, name, facts, parts, spare=None):
            handle = super().alltoall(name, facts, parts, spare)
            if not name.startswith("repairs"):
                return handle
            self.events.append("sent")

            def note(messages):
                self.events.append("awaited")
                return messages

            return Later(handle, note)

    def program(collectives):
        seam: Any = Watched(collectives)
        seam.events = []
        engine = Engine(plan, seam)
        words = LAYOUT.pack([np.full(WIDTH, plan.groups.of(collectives.rank), np.float32)])
        exchange(engine, words ^ (collectives.rank == 0))
        return seam.events, len(engine.parts(LAYOUT)), set(engine.ledger.report().dissents)

    for events, parts, dissenters in InProcessCluster(9, 20.0).run(program):
        assert dissenters == {0}
        assert parts > 1
        assert events == ["sent"] * parts + ["awaited"] * parts


@settings(max_examples=40)
@given(st.data())
def test_one_bad_wire_changes_no_update_and_frames_nobody(data):
    """Any rank, any words of it that are sent or received, in any way and any step."""
    ranks = data.draw(st.sampled_from([6, 7, 9]))
    way = data.draw(st.sampled_from([*WAYS]))
    detox = settings_of(way if ranks == 9 else "parts")
    bad, seed = data.draw(st.integers(0, ranks - 1)), data.draw(st.integers(0, 1000))
    random = np.random.default_rng(seed)
    chance = data.draw(st.sampled_from([0.02, 0.3, 1.0]))
    sends = data.draw(st.booleans())

    def disturb(name, other, words):
        if not name.startswith(SLICES) or not len(words) or random.random() > chance:
            return words
        changed = words.copy()
        changed[random.integers(len(words))] ^= 1 << int(random.integers(63))
        return changed

    fair = run(detox, ranks, {})
    wires = {bad: {"sent" if sends else "received": disturb}}
    for updates, report, _ in run(detox, ranks, wires):
        assert updates == fair[0][0]
        assert set(report.dissents) <= {bad}
        assert set(report.receptions) <= {bad}
        assert set(report.miscalculations) <= {bad}
        assert not report.suspicions or bad in report.suspicions


def test_the_wire_can_change_the_update():
    """Show that the tests above can fail: a slice of the update is checked by nobody at once."""
    detox = settings_of("whole")

    def sent(name, receiver, words):
        return words

    class Unchecked(Wire):
        def allgather_words(self, name, facts, words):
            return super().allgather_words(name, facts, stuck(words))

    plan = detox.plan(9)

    def program(collectives):
        seam: Any = Unchecked(collectives) if collectives.rank == 4 else collectives
        random = np.random.default_rng([0, plan.groups.of(collectives.rank)])
        words = LAYOUT.pack([random.standard_normal(WIDTH, np.float32)])
        return Engine(plan, seam).exchange(words, LAYOUT).update.tobytes()

    fair = run(detox, 9, {}, steps=1)
    assert set(InProcessCluster(9).run(program)) != {fair[0][0][0]}


def test_the_step_is_skipped_where_nobody_is_left_to_vote():
    detox = Detox(group_size=1, outer="median", one_round_bytes=0, overlap_bytes=0)
    bad = {"sent": lambda name, to, words: stuck(words) if name.startswith(SLICES) else words}

    def program(collectives):
        engine = Engine(detox.plan(2), Wire(collectives, **bad))  # type: ignore[arg-type]
        with pytest.raises(NoMajority):
            engine.exchange(LAYOUT.pack([np.ones(WIDTH, np.float32)]), LAYOUT)
        return True

    assert InProcessCluster(2).run(program) == [True] * 2

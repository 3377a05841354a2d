"""Drills that change what a rank holds: the fault is there, is named, and is healed."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.attacks import Attack, FlipState, from_spec
from horovod_detox.drill import DrilledEngine, StateDrill
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.packing.layout import Layout
from horovod_detox.replicas.pieces import BUFFERS, OPTIMIZER, PARAMETERS, RANDOM, Piece
from horovod_detox.replicas.replicas import Held, Replicas
from horovod_detox.replicas.upkeep import Upkeep
from tests.replicas.holder import THREES, Holder

STEPS, WHEN, EVERY = 12, 5, 3
KINDS = (PARAMETERS, OPTIMIZER, BUFFERS, RANDOM)


def program_of(attack: Attack | None, every: int = EVERY, **more: Any) -> Any:
    """Return what a rank does: train on a number that parameters go into."""
    detox = Detox(**{"group_size": 3, "outer": "mean", "scrub_every": every, **more})
    layout = Layout((("w", (6,), "float64"),))

    def program(collectives):
        engine = Engine(detox.plan(collectives.size), collectives, skips=True)
        holder = Holder(collectives.rank)
        if not detox.tolerance:
            held = Held(holder.pieces, holder.digest_of_batch)
            replicas = Replicas(engine.plan.groups, held)
            engine.upkeep = Upkeep(replicas, collectives, engine.ledger, every)
        drilled: Any = DrilledEngine(engine, attack, collectives) if attack else engine
        for step in range(STEPS):
            copy = np.arange(6.0) + holder.held["parameters/x"].sum() % 1009
            update = drilled.exchange(copy.view(np.int64), layout).update
            holder.held["parameters/x"] = holder.held["parameters/x"] + step
            holder.held["optimizer/x"] = holder.held["optimizer/x"] ^ update[:5]
        return {key: words.tolist() for key, words in holder.held.items()}, engine.ledger.report()

    return program


def train(attack: Attack | None, every: int = EVERY, **more: Any) -> list[Any]:
    """Return by rank what is held at the end, and the account of faults."""
    return InProcessCluster(6).run(program_of(attack, every, **more))


@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_is_named_by_its_piece_and_healed(kind, rank):
    fair = train(None)
    results = train(FlipState(of=kind, ranks=(rank,), steps=(WHEN, WHEN + 1)))
    assert [held for held, _ in results] == [held for held, _ in fair]
    (event,) = results[0][1].events
    assert event.ranks == (rank,)
    assert event.cause.what == (f"{kind}/x",)
    assert event.cause.kind == ("random" if kind == "random" else "state")
    assert event.cause.is_healed
    # Parameters go into the gradient of that very step; of the others digests are due later.
    shows = kind == "parameters"
    assert (event.step, event.kind) == ((WHEN, "dissent") if shows else (7, "drift"))


def test_a_flip_that_nobody_looks_for_stays():
    """What the drill does is a fault, and not only a word about it."""
    attack = FlipState(of="buffers", ranks=(1,), steps=(WHEN, WHEN + 1))
    results = train(attack, every=0)
    flipped = np.array(results[1][0]["buffers/x"]) ^ np.arange(5)
    assert [int(word).bit_count() for word in flipped if word] == [1]
    assert results[1][1].events == ()
    assert [held["buffers/x"] for held, _ in results if held["buffers/x"] != [0, 1, 2, 3, 4]] == [
        results[1][0]["buffers/x"]
    ]


def held_by_two(seed, probability=1.0):
    attack = FlipState(of="buffers", ranks=(1, 4), seed=seed, probability=probability)
    return [held for held, _ in train(attack, every=0)]


def test_the_seed_says_which_bits_and_when():
    assert held_by_two(3) == held_by_two(3)
    assert held_by_two(3)[1] != held_by_two(3)[4]
    assert held_by_two(3) != held_by_two(4)
    assert held_by_two(3) != held_by_two(3, probability=0.5) != held_by_two(4, probability=0.5)
    assert held_by_two(3, probability=0.0) == [held for held, _ in train(None)]


def test_a_piece_is_struck_by_its_name(caplog):
    caplog.set_level(logging.INFO, "horovod_detox")
    train(from_spec(f"flip_state(of='optimizer/x', steps=({WHEN}, {WHEN + 1}))@1"))
    assert f"drill: rank 1 flipped a bit of optimizer/x before step {WHEN}" in caplog.messages


@pytest.mark.parametrize(
    ("attack", "more", "message"),
    [
        (
            FlipState(of="buffers/y"),
            {},
            "no buffers/y is held; there is buffers/x",
        ),
        (FlipState(of="buffers", steps=(0, 2)), {}, r"choose step 2 or a later one"),
        (FlipState(of="buffers"), {"tolerance": 1e-5}, "nobody compares what ranks hold here"),
        (FlipState(of="buffers", ranks=(6,)), {}, "outside a job of 6 ranks"),
    ],
    ids=["name", "steps", "tolerance", "ranks"],
)
def test_what_cannot_be_rehearsed_is_refused_on_every_rank(attack, more, message):
    program = program_of(replace(attack, ranks=attack.ranks or (1,)), **more)

    def refused(collectives):
        with pytest.raises(ValueError, match=message):
            program(collectives)

    InProcessCluster(6).run(refused)


def test_without_scrubbing_it_is_said_once(caplog):
    train(FlipState(of="parameters", ranks=(0, 1), probability=0), every=0)
    said = [text for text in caplog.messages if "scrub_every=0" in text]
    assert said == ["drill: with scrub_every=0 only hvd.scrub() finds what shows in no gradient"]


def struck(pieces: list[Piece], of: str = "buffers", **more: Any) -> None:
    attack = FlipState(of=of, ranks=(0,))
    StateDrill(attack, 0, THREES, Held(lambda: pieces, **more)).strike(2)


def test_padding_and_what_is_refused_are_no_bits():
    """The flip is in what stays: here in a single bit of two words."""
    held = np.array([1, 0])

    def write(words):
        if words[1]:
            raise RuntimeError("not a state")
        held[0] = words[0] & 0b11

    struck([Piece("buffers", "x", lambda: held, write)])
    assert held.tolist() in ([0, 0], [3, 0])
    frozen = Piece("buffers", "y", lambda: np.arange(2), lambda words: None)
    for pieces in ([frozen], [Piece("buffers", "z", lambda: np.arange(0), lambda words: None)]):
        with pytest.raises(ValueError, match="no bit of buffers can be flipped"):
            struck(pieces)


def test_large_pieces_are_struck_more_often():
    """Every bit is as likely as another."""
    held = {"large": np.zeros(90, np.int64), "small": np.zeros(10, np.int64)}

    def piece(name):
        return Piece("buffers", name, lambda: held[name], lambda words: held.update({name: words}))

    held_now = Held(lambda: [piece("large"), piece("small")])
    drill = StateDrill(FlipState(of="buffers", ranks=(0,)), 0, THREES, held_now)
    small = 0
    for step in range(2, 502):
        before = held["small"].copy()
        drill.strike(step)
        small += not np.array_equal(before, held["small"])
    assert 30 < small < 75


def test_what_cannot_be_written_now_is_flipped_later():
    held, tasks = np.arange(4), []

    def write(words):
        held[:] = words

    struck(
        [Piece("buffers", "x", lambda: held, write)],
        is_readable=lambda: False,
        when_readable=tasks.append,
    )
    assert held.tolist() == [0, 1, 2, 3]
    (task,) = tasks
    task()
    assert held.tolist() != [0, 1, 2, 3]


def test_counters_of_random_generators_are_left_alone():
    attack = FlipState(of="random")
    for step in range(300):
        words = attack.flipped(np.zeros(315, np.int64), np.random.default_rng(step))
        (place,) = np.flatnonzero(words)
        assert 78 <= place < 237


def test_before_ranks_have_compared_nothing_is_struck():
    """A buffer that differs then would be taken for one that may differ."""
    held = np.arange(4)
    piece = Piece("buffers", "x", lambda: held, lambda words: held.__setitem__(slice(None), words))
    drill = StateDrill(FlipState(of="buffers", ranks=(0,)), 0, THREES, Held(lambda: [piece]))
    for step in (0, 1):
        drill.strike(step)
        assert held.tolist() == [0, 1, 2, 3]
    drill.strike(2)
    assert held.tolist() != [0, 1, 2, 3]

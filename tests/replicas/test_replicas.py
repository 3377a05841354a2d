"""What ranks hold alike, on the in-process cluster: who differs is healed, and nothing else."""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster, _ThreadCollectives
from horovod_detox.exchange.control import UNKNOWN, Control
from horovod_detox.exchange.step import NoMajority
from horovod_detox.packing.layout import Layout
from horovod_detox.replicas.files import Files
from horovod_detox.replicas.pieces import BUFFERS, OPTIMIZER, PARAMETERS, RANDOM, Piece
from horovod_detox.replicas.replicas import Held, Replicas
from horovod_detox.replicas.upkeep import Upkeep
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.majority import Verdict, Vote
from horovod_detox.vote.report import (
    COMPUTE,
    DATA,
    DATA_OR_COMPUTE,
    OF_RANDOM,
    STATE,
    Cause,
)

THREES = Groups(((0, 1, 2), (3, 4, 5)))
PAIRS = Groups(((0, 1), (2, 3)))
FINGERPRINTS = Fingerprints(b"secret", 0)


@dataclass
class Holder:
    """What one rank holds, by key."""

    rank: int
    held: dict[str, np.ndarray] = field(default_factory=dict)
    sent: dict[str, np.ndarray] = field(default_factory=dict)
    batch: int | None = 1
    reads: int = 0
    files: Files = field(default_factory=Files)

    def __post_init__(self):
        for kind in (PARAMETERS, OPTIMIZER, BUFFERS, RANDOM):
            self.held[f"{kind}/x"] = np.arange(5)

    def pieces(self):
        return [self._piece(key) for key in self.held]

    def _piece(self, key):
        kind, _, name = key.partition("/")

        def read():
            self.reads += 1
            is_second = self.reads > len(self.held)  # as when a donor sends what it had digested
            return self.sent.get(key, self.held[key]) if is_second else self.held[key]

        def write(words):
            self.held[key] = words.copy()

        return Piece(kind, name, read, write)

    def digest_of_batch(self):
        return None if self.batch is None else np.array([self.batch, 1])


def compare(groups, change, dissenters=(), again=lambda holder: None):
    """Compare what is equal, then what `change(holder)` left, then once more; all findings."""

    def program(collectives):
        holder = Holder(collectives.rank)
        replicas = Replicas(groups, Held(holder.pieces, holder.digest_of_batch))
        found = [replicas.compare(collectives, FINGERPRINTS)]
        for step in (change, again):
            step(holder)
            holder.reads = 0
            found.append(replicas.compare(collectives, FINGERPRINTS, dissenters))
        return holder, found

    results = InProcessCluster(groups.world_size).run(program)
    holders, findings = [holder for holder, _ in results], [found for _, found in results]
    assert all(found == findings[0] for found in findings)
    assert (findings[0][0].drifts, findings[0][0].undecided) == ({}, {})
    return holders, findings[0][1:]


def at(ranks, key, value: Any = 7):
    """Return a change: these ranks hold another value; a number for each, or one for all."""
    values = value if isinstance(value, list) else [value] * len(ranks)

    def change(holder):
        if holder.rank in ranks:
            holder.held[key] = np.full(5, values[ranks.index(holder.rank)])

    return change


def healed(holders, key):
    return all((holder.held[key] == np.arange(5)).all() for holder in holders)


@pytest.mark.parametrize("key", ["parameters/x", "optimizer/x", "buffers/x"])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_one_rank_is_healed(rank, key):
    holders, (found, after) = compare(THREES, at([rank], key))
    assert healed(holders, key)
    assert list(found.drifts) == [rank]
    cause = found.drifts[rank]
    assert (cause.kind, cause.what, cause.is_healed) == (STATE, (key,), True)
    assert (after.drifts, after.undecided) == ({}, {})


def test_two_members_of_one_group_are_healed_by_all_ranks():
    holders, (found, _) = compare(THREES, at([0, 2], "parameters/x", [7, 8]))
    assert healed(holders, "parameters/x")
    assert list(found.drifts) == [0, 2]


def test_what_differs_between_groups_is_left_alone():
    def of_groups(holder):
        holder.held["buffers/x"] = np.full(5, THREES.of(holder.rank))
        holder.held["random/x"] = np.full(5, 10 + THREES.of(holder.rank))

    holders, (found, _) = compare(THREES, of_groups)
    assert (found.drifts, found.undecided) == ({}, {})
    assert [int(holder.held["buffers/x"][0]) for holder in holders] == [0, 0, 0, 1, 1, 1]


def test_what_was_never_the_same_is_never_written_to():
    def local(holder):
        if "buffers/own" not in holder.held:
            holder.held["buffers/own"] = np.full(5, holder.rank)
        elif holder.rank == 1:
            holder.held["buffers/own"] = np.full(5, 99)

    holders, found = compare(THREES, local, again=local)
    assert [each.drifts for each in found] == [{}, {}]
    assert [int(holder.held["buffers/own"][0]) for holder in holders] == [0, 99, 2, 3, 4, 5]


def test_two_copies_of_a_pair_are_not_decided_and_not_asked_for_again():
    holders, (found, after) = compare(PAIRS, at([1], "buffers/x"))
    assert (found.drifts, found.undecided) == ({}, {"buffers/x": (0, 1)})
    assert int(holders[1].held["buffers/x"][0]) == 7
    assert after.undecided == {}


def test_three_different_copies_are_left_alone():
    holders, (found, _) = compare(THREES, at([3, 4], "random/x", [7, 8]))
    assert found.undecided == {"random/x": (3, 4, 5)}
    assert [int(holder.held["random/x"][1]) for holder in holders[3:]] == [7, 8, 1]


@pytest.mark.parametrize("values", [[7, 8], [7, 7]])
def test_who_computed_with_wrong_weights_does_not_decide_on_buffers(values):
    """Not even if two of them are most of their group."""

    def change(holder):
        at([3, 4], "parameters/x", [5, 6])(holder)
        at([3, 4], "buffers/x", values)(holder)

    holders, (found, _) = compare(Groups(((0, 1, 2), (3, 4, 5))), change)
    assert healed(holders, "buffers/x")
    assert (list(found.drifts), found.undecided) == ([3, 4], {})
    assert found.drifts[3].what == ("parameters/x", "buffers/x")


def test_half_of_all_ranks_are_no_majority():
    _, (found, _) = compare(THREES, at([0, 1, 2], "parameters/x"))
    assert (found.drifts, found.undecided) == ({}, {"parameters/x": tuple(range(6))})


def test_a_donor_that_sends_something_else_is_caught():
    """It was good when it was digested: the next donor heals, and it has written nothing."""
    wrong = np.full(5, 13)

    def change(holder):
        at([2], "parameters/x")(holder)
        if holder.rank == 0:
            holder.sent["parameters/x"] = wrong

    holders, (found, _) = compare(THREES, change)
    assert healed(holders, "parameters/x")
    assert found.drifts[2].is_healed


def test_who_gets_it_from_nobody_is_not_healed():
    def change(holder):
        at([2], "parameters/x")(holder)
        if holder.rank != 2:
            holder.sent["parameters/x"] = np.full(5, 13)

    holders, (found, _) = compare(THREES, change)
    assert int(holders[2].held["parameters/x"][0]) == 7
    assert not found.drifts[2].is_healed


@pytest.mark.parametrize("change", ["lacks", "is longer"])
def test_pieces_that_not_all_have_are_left_alone(change):
    def other(holder):
        at([4], "parameters/x")(holder)
        if holder.rank == 1 and change == "lacks":
            del holder.held["optimizer/x"]
        elif holder.rank == 1:
            holder.held["optimizer/x"] = np.zeros(6, int)

    holders, (found, _) = compare(THREES, other)
    assert healed(holders, "parameters/x")
    assert list(found.drifts) == [4]


CAUSES = {
    "state": (at([1], "parameters/x"), STATE),
    "state before random": (
        lambda holder: [at([1], key)(holder) for key in ("buffers/x", "random/x")],
        STATE,
    ),
    "random": (at([1], "random/x"), OF_RANDOM),
    "data": (lambda holder: setattr(holder, "batch", 2 if holder.rank == 1 else 1), DATA),
    "compute": (lambda holder: None, COMPUTE),
    "data or compute": (lambda holder: setattr(holder, "batch", None), DATA_OR_COMPUTE),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_of_a_dissent(name):
    change, kind = CAUSES[name]
    _, (found, _) = compare(THREES, change, dissenters=[1])
    assert found.causes[1].kind == kind
    assert found.drifts == {}


def test_other_data_on_a_rank_of_another_group_are_no_cause():
    def change(holder):
        holder.batch = 10 + THREES.of(holder.rank)

    _, (found, _) = compare(THREES, change, dissenters=[4])
    assert found.causes[4].kind == COMPUTE


def test_a_dissent_is_new_once():
    upkeep = Upkeep(Replicas(THREES, Held(list)), cast(Any, None), Ledger(THREES), 0)
    lost = Verdict((Vote((0,), (2,)), Vote((3,))))
    tied = Verdict((Vote((0,)), Vote(None)))
    clean = Verdict((Vote((0,)), Vote((3,))))
    steps = [lost, lost, tied, tied, clean, lost]
    new = [upkeep._accused_anew(verdict) for verdict in steps]
    assert new == [{2}, set(), {3, 4, 5}, set(), set(), {2}]


class Counted:
    """The seam of one rank, which counts the collectives by name."""

    def __init__(self, collectives):
        self._collectives, self.names = collectives, []
        self.rank, self.size = collectives.rank, collectives.size

    def __getattr__(self, verb):
        def call(name, *args, **kwargs):
            self.names.append(name)
            return getattr(self._collectives, verb)(name, *args, **kwargs)

        return call


def exchanges(
    steps, every, fault: Any = lambda step, holder: None, lie=lambda step, rank: False, **more
):
    """Exchange with an engine that looks after what ranks hold; return what is seen by rank."""
    detox = Detox(**{"group_size": 3, "outer": "mean", "one_round_bytes": 0, **more})
    layout = Layout((("w", (6,), "float64"),))

    def program(collectives):
        counted: Any = Counted(collectives)
        engine = Engine(detox.plan(collectives.size), counted, skips=True)
        holder = Holder(collectives.rank)
        held = Held(holder.pieces, holder.digest_of_batch, files=holder.files)
        replicas = Replicas(engine.plan.groups, held)
        engine.upkeep = Upkeep(replicas, counted, engine.ledger, every)
        updates = []
        for step in range(steps):
            fault(step, holder)
            copy = np.arange(6.0) * (1 + float(holder.held["parameters/x"][0]))
            copy = copy + (lie(step, collectives.rank) * (1.0 + collectives.rank))
            updates.append(engine.exchange(copy.view(np.int64), layout).update.tobytes())
        return holder, engine.ledger.report(), counted.names, updates

    return InProcessCluster(6).run(program)


def names_of(results):
    return [name for name in results[0][2] if name.startswith("replicas")]


def test_usual_steps_cost_no_collective():
    results = exchanges(20, every=5)
    assert names_of(results) == ["replicas"]  # in the second exchange, which finds what is equal
    assert results[0][1].events == ()


@pytest.mark.parametrize("rank", [0, 5])
def test_what_shows_in_no_gradient_is_healed_when_it_is_due(rank):
    def fault(step, holder):
        if step == 7 and holder.rank == rank:
            holder.held["buffers/x"] = np.full(5, 3)

    results = exchanges(12, every=5, fault=fault)
    assert healed([holder for holder, *_ in results], "buffers/x")
    (event,) = results[0][1].events
    assert (event.step, event.kind, event.ranks) == (11, "drift", (rank,))
    assert str(event) == (
        f"step 11: rank {rank} drifted: it held another state than most (buffers/x); healed"
    )
    assert results[0][1].hosts_at_fault == {}


def test_never_is_never():
    def fault(step, holder):
        if step == 6 and holder.rank == 1:
            holder.held["buffers/x"] = np.full(5, 3)

    results = exchanges(12, every=0, fault=fault)
    assert int(results[1][0].held["buffers/x"][0]) == 3


def test_what_shows_in_the_gradient_is_healed_at_once():
    def fault(step, holder):
        if step == 6 and holder.rank == 1:
            holder.held["parameters/x"] = np.full(5, 3)

    results = exchanges(12, every=0, fault=fault)
    (event,) = results[0][1].events
    assert (event.step, event.kind) == (6, "dissent")
    assert event.cause == Cause(STATE, ("parameters/x",), is_healed=True)
    assert results[0][1].dissents == results[0][1].healed == {1: 1}
    assert results[0][1].causes == {1: {"state": 1}}


def test_a_lasting_lie_is_examined_once():
    results = exchanges(12, every=0, lie=lambda step, rank: step > 4 and rank == 1)
    assert len(names_of(results)) == 2
    report = results[0][1]
    assert report.dissents == {1: 7}
    assert report.causes == {1: {"compute": 7}}
    assert [event.cause is not None for event in report.events] == [True] + [False] * 6


@pytest.mark.parametrize("lie", ["digest", "flag", "update"])
def test_what_one_rank_tells_wrongly_again_and_again_costs_a_round_at_most(lie, monkeypatch):
    tell = Control.tell

    def tell_wrongly(control, facts=(), is_complete=True):
        if control._collectives.rank == 4 and control._record["step"][0] > 4:
            if lie == "digest":
                control._record["replicas"] += 7
            elif lie == "flag":
                control._record["flags"] |= UNKNOWN
            else:
                control._record["update"] += 7
        return tell(control, facts, is_complete)

    monkeypatch.setattr(Control, "tell", tell_wrongly)
    results = exchanges(16, every=0)
    assert names_of(results) == ["replicas"] * (2 if lie == "update" else 1)


def two_flips(step, holder):
    """Flip in two members of a group: no two of its copies are the same."""
    if step == 6 and holder.rank in (0, 2):
        holder.held["parameters/x"] = np.full(5, 3 + holder.rank)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"exchange": "gathered"},
        {"exchange": "leaders"},
        {"momentum": 0.9},
    ],
    ids=str,
)
def test_flips_in_two_members_cost_no_vote_not_even_in_that_step(more):
    """The third, which holds what all others hold, speaks for the group."""
    fair = exchanges(12, every=0, **more)
    results = exchanges(12, every=0, fault=two_flips, **more)
    report = results[0][1]
    assert (report.abstentions, report.dissents, report.skipped) == ({}, {}, 0)
    assert report.healed == report.drifts == {0: 1, 2: 1}
    assert healed([holder for holder, *_ in results], "parameters/x")
    assert [each[3] for each in results] == [each[3] for each in fair]
    assert report.steps == 12


def test_who_lies_beside_them_speaks_for_nobody_that_differs():
    """Two hold the right state, of which one lies: nobody knows which, and the vote is lost."""

    def fault(step, holder):
        if step == 6 and holder.rank == 0:
            holder.held["parameters/x"] = np.full(5, 3)

    results = exchanges(12, 0, fault, lambda step, rank: step == 6 and rank == 2, outer="median")
    report = results[0][1]
    assert report.abstentions == {0: 1}
    assert report.healed == {0: 1}


@pytest.mark.parametrize(
    ("bad", "abstentions", "dissents"), [([2], {}, {2: 1}), ([0, 2], {0: 1}, {})]
)
def test_a_copy_that_arrives_otherwise_is_not_taken_over(monkeypatch, bad, abstentions, dissents):
    """Who receives it badly goes on with its own; two that receive the same are no majority."""
    broadcast = _ThreadCollectives.broadcast

    @dataclass
    class Falsified:
        handle: Any
        words: Any

        def wait(self):
            self.handle.wait()
            self.words[0] ^= 1

    def falsify(self, name, words, root):
        handle = broadcast(self, name, words, root)
        is_bad = name.startswith("replicas.copy") and self.rank in bad
        return Falsified(handle, words) if is_bad else handle

    monkeypatch.setattr(_ThreadCollectives, "broadcast", falsify)
    report = exchanges(12, every=0, fault=two_flips)[0][1]
    assert (report.abstentions, report.dissents) == (abstentions, dissents)


def test_a_step_that_is_skipped_heals_too():
    def fault(step, holder):
        if step == 6 and holder.rank in (0, 3):
            holder.held["parameters/x"] = np.full(5, 9)

    def lie(step, rank):
        return step == 6 and rank < 4  # two of each group, each its own

    results = exchanges(12, every=0, fault=fault, lie=lie)
    report = results[0][1]
    assert report.skipped == 1
    assert report.healed == {0: 1, 3: 1}
    assert healed([holder for holder, *_ in results], "parameters/x")
    with pytest.raises(NoMajority):
        exchanges(12, every=0, lie=lie, max_skipped_steps=0)

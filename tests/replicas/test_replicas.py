"""What ranks hold alike, on the in-process cluster: who differs is healed, and nothing else."""

from typing import Any

import numpy as np
import pytest

from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.replicas.replicas import Held, Replicas
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.report import (
    COMPUTE,
    DATA,
    DATA_OR_COMPUTE,
    OF_RANDOM,
    STATE,
)
from tests.replicas.holder import THREES, Holder, healed

PAIRS = Groups(((0, 1), (2, 3)))
FINGERPRINTS = Fingerprints(b"secret", 0)


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


def test_what_most_hold_is_taken_for_right():
    """Nobody knows better: the one that was right gets what two others hold."""
    holders, (found, after) = compare(THREES, at([3, 4], "buffers/x"))
    assert (list(found.drifts), found.undecided) == ([5], {})
    assert [int(holder.held["buffers/x"][1]) for holder in holders] == [1, 1, 1, 7, 7, 7]
    assert (after.drifts, after.undecided) == ({}, {})


@pytest.mark.parametrize("key", ["parameters/x", "buffers/x"])
def test_what_all_hold_is_taken_for_right(key):
    _, (found, _) = compare(THREES, at(range(6), key))
    assert (found.drifts, found.undecided) == ({}, {})


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

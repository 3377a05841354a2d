"""Exchanges that some ranks enter without all of their gradients: they wait, or go on, on all."""

from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.step import Postponed
from tests.cluster import layout_of, parts_wanted

pytestmark = pytest.mark.usefixtures("small_blocks")
PARTS = Detox(one_round_bytes=0, overlap_bytes=8 * 5)
WAYS = {
    "in parts": PARTS,
    "witnesses": replace(PARTS, witnesses=1),
    "gram": replace(PARTS, outer="geometric_median"),
    "whole": Detox(one_round_bytes=0, overlap_bytes=0),
    "gathered": Detox(),
    "leaders": Detox(exchange="leaders"),
    "tolerant": Detox(tolerance=1e-9),
}
WIDTH = 40


def copies_of(detox, p, width=WIDTH):
    """Return what the ranks send; the second of every group lies."""
    groups = detox.plan(p).groups
    votes = np.random.default_rng(0).normal(size=(len(groups), width)).astype(np.float32)
    copies = [votes[groups.of(rank)].copy() for rank in range(p)]
    for members in groups.members:
        if len(members) > 2:
            copies[members[1]] *= -1
    return copies


def exchange(detox, p, passes, sent=lambda rank: 0):
    """Exchange at the end of each pass; `passes` gives the ranks that are incomplete there.

    Args:
        sent: how many parts a rank sends before the end of the first pass.

    Returns, by rank: the number of passes, the update and the dissents.
    """
    copies = copies_of(detox, p)
    layout = layout_of(copies[0])

    def program(collectives):
        engine, rank = Engine(detox.plan(p), collectives), collectives.rank
        words = layout.pack([copies[rank]])
        update, copy = np.empty_like(words), np.zeros_like(words)
        parts, under_way = engine.parts(layout), None
        if len(parts) > 1:
            under_way = engine.begin(copy, layout, update)
            for part in range(min(sent(rank), len(parts))):
                copy[: parts[part].stop] = words[: parts[part].stop]
                under_way.send(part)

        def end_pass(is_complete):
            if under_way is None:
                return engine.exchange(words, layout, update, is_complete)
            if is_complete:
                copy[:] = words
                return engine.finish(under_way)
            fill = partial(np.copyto, copy, words)
            return engine.finish(under_way, partial(under_way.finish, fill))

        for number, incomplete in enumerate(passes, 1):
            with suppress(Postponed):
                outcome = end_pass(rank not in incomplete)
                return number, outcome.update.tobytes(), engine.ledger.report().dissents
        raise AssertionError("postponed in the last pass")

    return InProcessCluster(p).run(program)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([{1}], 1),  # one rank
        ([{0, 3}], 1),  # most of one group, and one of another
        ([{0, 2, 4}], 1),  # one group
        ([{0, 1, 2, 3, 4, 5}, {}], 2),  # all
        ([{0, 1, 2, 3, 4}, {}], 2),  # all but one
        ([{0, 2, 3, 5}, {0, 2, 3, 5}, {5}], 3),  # most of each group
        ([{0, 2, 3, 5}, {0, 1, 2, 3, 4, 5}, {0, 2, 4}], 3),
    ],
)
def test_all_ranks_go_on_or_wait(way, passes, expected):
    detox = replace(WAYS[way], group_size=3)
    ordinary = exchange(detox, 6, [{}])
    assert all(found == ordinary[0] for found in ordinary)
    assert set(ordinary[0][2]) == {2, 3} or way == "tolerant"
    assert exchange(detox, 6, passes) == [(expected, *ordinary[0][1:])] * 6


@pytest.mark.parametrize(
    ("num_byzantine", "complete_groups", "goes_on"),
    [(None, 0, False), (None, 1, True), (2, 1, False), (2, 2, True), (4, 2, False), (4, 3, True)],
)
def test_more_groups_must_be_complete_than_faulty_ranks_can_capture(
    num_byzantine, complete_groups, goes_on
):
    detox = Detox(3, outer="median", num_byzantine=num_byzantine)
    groups = detox.plan(15).groups.members
    incomplete = {rank for ranks in groups[complete_groups:] for rank in ranks[1:]}
    found = exchange(detox, 15, [incomplete, {}])
    assert {number for number, *_ in found} == {1 if goes_on else 2}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_bit_depends_on_what_was_sent_before(data):
    """Ranks have sent different parts when a pass ends, and are incomplete in different passes."""
    p = data.draw(st.sampled_from([3, 5, 6]))
    detox = replace(
        PARTS,
        group_size=3,
        outer=data.draw(st.sampled_from(["mean", "median", "geometric_median"])),
        overlap_bytes=data.draw(st.integers(8, 100)),
        momentum=data.draw(st.sampled_from([0.0, 0.9])),
    )
    ranks = st.sets(st.integers(0, p - 1))
    passes = [*data.draw(st.lists(ranks, max_size=3)), set()]
    number = parts_wanted(detox, layout_of(copies_of(detox, p)[0]))
    sent = data.draw(st.lists(st.integers(0, number), min_size=p, max_size=p))
    found = exchange(detox, p, passes, lambda rank: sent[rank])
    ordinary = exchange(detox, p, [{}])
    assert {each[1:] for each in map(hashable, found)} == {hashable(ordinary[0])[1:]}
    assert len({number for number, *_ in found}) == 1


def hashable(found):
    number, update, dissents = found
    return number, update, tuple(sorted(dissents.items()))

"""What a job carries from exchange to exchange, with all ranks in one process."""

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import CenteredClipping
from horovod_detox.exchange import aggregation
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority
from horovod_detox.history import DISTRUSTED_STEPS, History
from tests.cluster import layout_of


def step(history, copies):
    """Exchange the buffers of all ranks, one of each; return the update."""
    layout = layout_of(copies[0])
    words = [layout.pack([copy]) for copy in copies]
    outcome = aggregate_copies(history.plan_now(), layout.buffers, words, history.memory(layout))
    return layout.typed(history.record(outcome, layout).update)[0]


def test_a_centre_is_kept_for_the_same_parameters_and_only_then():
    history = History(Detox(group_size=1, outer=CenteredClipping(radius=0.5)).plan(3))
    four, others = [np.full(1, 4.0)] * 3, [np.full(4, 4.0)] * 3
    poison = [np.full(1, np.nan)] * 3
    norms = [np.linalg.norm(step(history, copies)) for copies in (four, four, poison, four)]
    assert norms == pytest.approx([0.5, 1.0, np.nan, 1.5], nan_ok=True)
    norms = [np.linalg.norm(step(history, copies)) for copies in (others, others, four)]
    assert norms == pytest.approx([0.5, 1.0, 0.5])
    assert history.step == 7


def test_an_exchange_without_an_update_changes_nothing():
    history = History(Detox(group_size=3, outer=CenteredClipping(radius=0.5)).plan(6))
    four = [np.full(1, 4.0)] * 6
    first = step(history, four).copy()
    with pytest.raises(NoMajority):
        step(history, [np.full(2, float(rank)) for rank in range(6)])
    assert history.step == 1
    assert step(history, four) == 2 * first


def test_who_dissented_is_distrusted_for_a_while():
    history = History(Detox(group_size=3).plan(6))
    layout = layout_of(np.zeros(1))
    step(history, [np.full(1, float(rank == 5)) for rank in range(6)])
    assert history.memory(layout).distrusted == {5}
    assert history.ledger.report().dissents == {5: 1}
    history.step = DISTRUSTED_STEPS + 1
    assert history.memory(layout).distrusted == frozenset()


def test_a_copy_that_several_ranks_share_is_looked_at_once(monkeypatch):
    seen = []
    look = aggregation._finite_slices
    monkeypatch.setattr(
        aggregation, "_finite_slices", lambda *args: seen.append(args[1]) or look(*args)
    )
    history = History(Detox(group_size=3).plan(6))
    layout = layout_of(np.zeros(2))
    honest = [layout.pack([np.full(2, float(group))]) for group in range(2)]
    words = [honest[history.plan.groups.of(rank)] for rank in range(6)]
    words[4] = layout.pack([np.full(2, 7.0)])
    outcome = aggregate_copies(history.plan, layout.buffers, words)
    assert len(seen) == 3
    assert outcome.verdict.dissenters == (4,)


def test_a_rule_draws_anew_in_every_step():
    history = History(Detox(group_size=1, outer="bucketing(s=2)+median").plan(5))
    copies = [np.full(1, float(rank**2)) for rank in range(5)]
    assert len({step(history, copies).item() for _ in range(8)}) > 1

"""Ranks that hold another update than most: named in the next step, and the job goes on."""

from dataclasses import replace

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.control import RanksDisagree
from tests.cluster import failing_everywhere
from tests.exchange.test_transfers import LAYOUT, WIDTH, run, settings_of, stuck

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_who_receives_the_update_wrongly_is_named_in_the_next_step():
    detox = settings_of("whole")
    fair = run(detox, 9, {})
    steps = []

    def received(name, sender, words):
        if name.startswith("update") and sender == 5:
            steps.append(name)
            return stuck(words) if len(steps) == 1 else words
        return words

    results = run(detox, 9, {2: {"received": received}})
    for rank, (updates, report, _) in enumerate(results):
        assert updates[1:] == fair[0][0][1:]
        assert (updates[0] == fair[0][0][0]) == (rank != 2)
        assert report.divergences == {2: 1}
        assert (report.dissents, report.receptions) == ({}, {})
    event = results[0][1].events[0]
    assert str(event) == "step 1: rank 2 held another update than most ranks after the step before"


@pytest.mark.parametrize("exchange", ["sharded", "gathered", "leaders"])
def test_who_computed_another_update_is_named_in_every_exchange(exchange):
    plan = Detox(exchange=exchange, one_round_bytes=0).plan(6)

    def program(collectives):
        engine = Engine(plan, collectives)
        words = LAYOUT.pack([np.ones(WIDTH, np.float32)])
        unharmed = engine._finish
        if collectives.rank == 3:
            engine._finish = lambda step, finish, again: unharmed(
                step, lambda: falsified(finish()), again
            )
        engine.exchange(words, LAYOUT)
        engine._finish = unharmed
        engine.exchange(words, LAYOUT)
        engine.exchange(words, LAYOUT)
        return engine.ledger.report().divergences

    def falsified(outcome):
        return replace(outcome, update=outcome.update + 1, digest=None)

    assert InProcessCluster(6).run(program) == [{3: 1}] * 6


def test_half_of_the_ranks_with_another_update_end_the_job():
    plan = Detox(one_round_bytes=0).plan(6)

    def program(collectives):
        engine = Engine(plan, collectives)
        words = LAYOUT.pack([np.ones(WIDTH, np.float32)])
        engine.exchange(words, LAYOUT)
        if collectives.rank < 3:
            engine._digest = engine._digest + 1
        engine.exchange(words, LAYOUT)

    failing_everywhere(program, 6, RanksDisagree, "in step 0 at most half of the ranks")

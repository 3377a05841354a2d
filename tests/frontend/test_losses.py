"""Losses of closures: voted on, then the median, whatever the gradients go by."""

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.frontend.context import Engines
from tests.cluster import layout_of

LAYOUT = layout_of(np.zeros(1))


@pytest.mark.parametrize(
    ("fields", "noise"),
    [
        ({"outer": "sign_majority"}, 0.0),
        ({"outer": "mean", "momentum": 0.9, "witnesses": 1}, 0.0),
        ({"outer": "bulyan", "exchange": "leaders"}, 0.0),
        ({"outer": "centered_clipping(radius=0.1)", "tolerance": 1e-5}, 1e-9),
    ],
)
def test_all_ranks_see_the_median_of_the_groups_losses(fields, noise):
    plan = Detox(group_size=3, **fields).plan(9)

    def program(collectives):
        engine = Engines(plan, lambda name: collectives, None, None).make_for_losses()
        seen = []
        for step in range(2):
            rank = collectives.rank
            loss = [2.37, 7.0, 5.0][plan.groups.of(rank)] + step
            mine = np.array([1e9 if rank == 4 else loss * (1 + rank * noise)])
            seen.append(LAYOUT.typed(engine.exchange(LAYOUT.pack([mine]), LAYOUT).update)[0].item())
        return seen, engine.ledger.report().dissents

    results = InProcessCluster(9).run(program)
    assert all(result == results[0] for result in results)
    assert results[0][0] == pytest.approx([5.0, 6.0], rel=1e-7)
    assert results[0][1] == {4: 2}

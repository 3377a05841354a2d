"""What ranks tell each other beside the copies, and what follows if it is not the usual."""

from dataclasses import replace

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.control import RECORD, Control, RanksDisagree
from horovod_detox.vote.work import Tally
from tests.cluster import failing_everywhere, layout_of

LAYOUT = layout_of(np.zeros(3))


def control(collectives, flags=0, **fields):
    usual = {
        "step": 4,
        "layout": LAYOUT,
        "update": np.array([5, 6]),
        "steps": 1,
        "settings": (7, 8),
    }
    made = Control(collectives, **{**usual, **fields})
    made._record["flags"] = flags
    return made


def test_a_record_has_fixed_width_and_facts_follow_it():
    told = control(None).tell([10, 11])
    assert len(told) == RECORD.itemsize // 8 + 2
    assert told[:1].tolist() == [4]
    heard = control(None).hear([told, control(None).tell([12])])
    assert [facts.tolist() for facts in heard] == [[10, 11], [12]]


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ({"step": 5}, r"different steps: \[4, 4, 5, 4\]"),
        ({"layout": layout_of(np.zeros(4))}, r"rank 0 has p0 \[3\].* rank 2 has p0 \[4\]"),
        ({"settings": (7, 9)}, r"ranks \[2\] have other settings"),
        ({"flags": 1 << 20}, r"ranks \[2\] run another version"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_all_ranks_hear_what_is_not_the_usual(odd, text, first):
    def program(collectives):
        mine = control(collectives, **(odd if collectives.rank == 2 else {}))
        if first:
            mine.introduce()
        told = collectives.allgather("told", mine.tell()).wait().reshape(collectives.size, -1)
        mine.hear(list(told))

    failing_everywhere(program, 4, RanksDisagree, text)


def test_who_holds_another_update_than_most_is_named_and_the_exchange_goes_on():
    def program(collectives):
        mine = control(collectives, update=np.array([5, 6 + (collectives.rank == 2)]))
        told = collectives.allgather("told", mine.tell([1])).wait().reshape(collectives.size, -1)
        facts = mine.hear(list(told))
        return mine.diverged, [each.tolist() for each in facts]

    assert InProcessCluster(4).run(program) == [((2,), [[1]] * 4)] * 4


@pytest.mark.parametrize("updates", [(5, 5, 6, 6), (5, 6, 7, 8)])
def test_where_no_update_is_that_of_most_all_ranks_end(updates):
    def program(collectives):
        mine = control(collectives, update=np.array([5, updates[collectives.rank]]))
        told = collectives.allgather("told", mine.tell()).wait().reshape(collectives.size, -1)
        mine.hear(list(told))

    failing_everywhere(program, 4, RanksDisagree, "in step 3 at most half of the ranks")


def test_a_flag_on_all_ranks_is_not_the_usual_either():
    def program(collectives):
        control(collectives, flags=1 << 20).introduce()

    failing_everywhere(program, 4, RanksDisagree, "run another version of horovod_detox")


@pytest.mark.parametrize(
    "odd", [{"outer": "mean"}, {"exchange": "leaders"}, {"one_round_bytes": 0}]
)
def test_ranks_with_other_settings_find_out_before_they_wait_for_each_other(odd):
    """They would take to different exchanges, in which they call different collectives."""
    settings = Detox(group_size=3)

    def program(collectives):
        detox = replace(settings, **odd) if collectives.rank == 4 else settings
        Engine(detox.plan(6), collectives).exchange(LAYOUT.pack([np.zeros(3)]), LAYOUT)

    failing_everywhere(program, 6, RanksDisagree, r"ranks \[4\] have other settings")


def test_an_update_that_is_used_otherwise_is_found_out():
    plan = Detox(group_size=3).plan(6)

    def program(collectives):
        purpose = "times 2" if collectives.rank == 1 else "times 1"
        engine = Engine(plan, collectives, purpose=purpose)
        engine.exchange(LAYOUT.pack([np.zeros(3)]), LAYOUT)

    failing_everywhere(program, 6, RanksDisagree, r"ranks \[1\] have other settings")


def test_who_has_stepped_otherwise_than_most_is_named_and_the_exchange_goes_on():
    def program(collectives):
        mine = control(collectives, steps=0 if collectives.rank == 3 else 1)
        told = collectives.allgather("told", mine.tell()).wait().reshape(collectives.size, -1)
        mine.hear(list(told))
        return mine.out_of_step

    assert InProcessCluster(4).run(program) == [(3,)] * 4


def test_where_half_of_the_ranks_have_stepped_and_half_have_not_all_ranks_end():
    def program(collectives):
        mine = control(collectives, steps=collectives.rank % 2)
        told = collectives.allgather("told", mine.tell()).wait().reshape(collectives.size, -1)
        mine.hear(list(told))

    failing_everywhere(program, 4, RanksDisagree, r"stepped \[0, 1, 0, 1\] times, by rank")


def test_steps_are_told_once():
    plan, tallies = Detox(group_size=3).plan(3), [Tally("SGD") for _ in range(3)]

    def program(collectives):
        engine = Engine(plan, collectives, tally=tallies[collectives.rank])
        for step in range(4):
            engine.exchange(LAYOUT.pack([np.ones(3)]), LAYOUT)
            tallies[collectives.rank].steps += (step, collectives.rank) != (1, 2)
        return engine.ledger.report()

    for rank, report in enumerate(InProcessCluster(3).run(program)):
        assert report.out_of_step == {2: 1}
        assert str(report) == "rank 2 was out of step in 1 of 4 steps"
        assert str(report.events[0]) == (
            "step 2: rank 2 has stepped more or less often than most ranks since the last "
            "exchange: it holds other weights"
        )
        assert tallies[rank] == Tally("SGD", exchanges=4, steps=3 if rank == 2 else 4)

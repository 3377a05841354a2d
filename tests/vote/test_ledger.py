"""The ledger: facts in, totals and events out."""

import json
import logging

from horovod_detox.vote import ledger as ledger_module
from horovod_detox.vote.groups import Groups, form_groups
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.majority import Verdict, Vote
from horovod_detox.vote.report import Cause, Event, FaultReport, Findings
from horovod_detox.vote.work import Tally

GROUPS = form_groups(6, 3)  # (0, 2, 4) and (1, 3, 5)
FINE = Vote(winners=(0,))


def test_totals_and_events():
    ledger = Ledger(GROUPS)
    ledger.record(0, Verdict((FINE, FINE)))
    ledger.record(1, Verdict((Vote((0,), dissenters=(4,)), Vote(None))))
    ledger.record(2, Verdict((Vote((0,), dissenters=(2, 4)), FINE)), non_finite=(1,))
    report = ledger.report()
    assert (report.steps, report.dissents) == (3, {2: 1, 4: 2})
    assert (report.abstentions, report.non_finite) == ({1: 1}, {1: 1})
    assert report.events == (
        Event(1, "dissent", 0, (4,)),
        Event(1, "abstention", 1, (1, 3, 5)),
        Event(2, "dissent", 0, (2, 4)),
        Event(2, "non_finite", 1, (1, 3, 5)),
    )
    assert json.loads(report.to_json())["dissents"] == {"2": 1, "4": 2}
    assert str(report).startswith("rank 2 dissented in 1, rank 4 dissented in 2, group 1 abstained")


def test_an_account_without_faults_says_so():
    ledger = Ledger(GROUPS)
    ledger.record(0, Verdict((FINE, FINE)))
    assert str(ledger.report()) == "no fault in any of 1 steps"


def test_ranks_of_a_subset_are_reported_by_their_names_in_the_job():
    ledger = Ledger(form_groups(3, 3), ranks=(2, 5, 7))
    ledger.record(0, Verdict((Vote((0,), dissenters=(1,)),)))
    assert ledger.report().dissents == {5: 1}
    ledger.record(1, Verdict((Vote(None),)))
    assert ledger.report().events[-1].ranks == (2, 5, 7)


def test_a_culprit_is_logged_once_and_told_to_callbacks_always(caplog):
    told = []
    ledger = Ledger(GROUPS)
    ledger.subscribe(told.append)
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        for step in range(3):
            ledger.record(step, Verdict((Vote((0,), dissenters=(4,)), FINE)))
    assert caplog.messages == ["step 0: group 0 outvoted rank 4"]
    assert [event.step for event in told] == [0, 1, 2]


def test_a_fault_that_lasts_is_told_from_one_that_is_over(caplog):
    ledger = Ledger(GROUPS)
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        for step in range(200):
            dissenters = (*[2] * (step == 3), *[4] * (step >= 50), *[0] * (100 <= step < 120))
            groups = Vote(None) if step == 7 else FINE
            ledger.record(step, Verdict((Vote((0,), tuple(sorted(dissenters))), groups)))
    assert caplog.messages == [
        "step 3: group 0 outvoted rank 2",
        "step 7: group 1 had no majority and was left out (ranks 1, 3, 5)",
        "step 13: not any more: rank 2 dissented in step 3",
        "step 17: not any more: group 1 abstained in step 7",
        "step 50: group 0 outvoted rank 4",
        "step 59: rank 4 dissented in 10 steps, 50 to 59",
        "step 100: group 0 outvoted rank 0, 4",
        "step 109: rank 0 dissented in 10 steps, 100 to 109",
        "step 129: not any more: rank 0 dissented in 20 steps, 100 to 119",
        "step 149: rank 4 dissented in 100 steps, 50 to 149",
    ]
    assert ledger.report().spans == {
        "dissent": {0: (100, 119), 2: (3, 3), 4: (50, 199)},
        "abstention": {1: (7, 7)},
    }


def test_a_fault_that_comes_and_goes_is_not_told_every_time(caplog):
    ledger = Ledger(GROUPS)
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        for step in range(0, 4000):
            dissenters = (4,) if step % 20 == 0 else ()
            ledger.record(step, Verdict((Vote((0,), dissenters), FINE)))
    assert len(caplog.messages) == 6  # at first, after 10 and 100, and that each was over
    assert ledger.report().dissents == {4: 200}


def test_when_a_fault_began_is_known_after_its_events_are_gone(monkeypatch):
    monkeypatch.setattr(ledger_module, "KEPT_EVENTS", 5)
    ledger = Ledger(GROUPS, hosts="aabbcc", logs=False)
    for step in range(3, 20):
        ledger.record(step, Verdict((Vote((0,), dissenters=(4,)), FINE)))
    assert ledger.report().spans == {"dissent": {4: (3, 19)}}
    assert json.loads(ledger.report().to_json())["spans"] == {"dissent": {"4": [3, 19]}}


def test_callbacks_see_a_step_that_is_entered_whole():
    ledger = Ledger(form_groups(6, 3, "packed"))
    seen = []
    ledger.subscribe(lambda event: seen.append(ledger.report().dissents))
    ledger.record(0, Verdict((Vote((0,), (2,)), Vote((3,), (4,)))))
    assert seen == [{2: 1, 4: 1}] * 2


def test_a_callback_that_fails_stops_nobody(caplog):
    def failing(event):
        raise RuntimeError(event)

    told = []
    ledger = Ledger(GROUPS, logs=False)
    ledger.subscribe(failing)
    ledger.subscribe(told.append)
    ledger.record(0, Verdict((Vote((0,), dissenters=(2, 4)), Vote(None))))
    assert len(told) == 2
    assert ledger.report().dissents == {2: 1, 4: 1}
    assert caplog.messages[0] == (
        "a callback of hvd.on_fault failed; training goes on. The fault was: step 0: group 0 "
        "outvoted rank 2, 4"
    )


def test_memory_is_bounded_and_totals_are_not(monkeypatch):
    monkeypatch.setattr(ledger_module, "KEPT_EVENTS", 5)
    ledger = Ledger(GROUPS)
    for step in range(20):
        ledger.record(step, Verdict((Vote((0,), dissenters=(4,)), FINE)))
    report = ledger.report()
    assert report.dissents == {4: 20}
    assert [event.step for event in report.events] == [15, 16, 17, 18, 19]


def test_on_several_hosts_faults_are_told_with_their_hosts(caplog):
    ledger = Ledger(GROUPS, hosts="aabbcc")
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        ledger.record(
            0, Verdict((Vote((0,), dissenters=(2, 4)), Vote(None))), named={"miscalculation": (5,)}
        )
    assert caplog.messages == [
        "step 0: group 0 outvoted rank 2 (host b), 4 (host c)",
        "step 0: group 1 had no majority and was left out (ranks 1, 3, 5 on hosts a, b, c)",
        "step 0: rank 5 (host c) computed a wrong part of the update",
    ]
    report = ledger.report()
    assert report.hosts_at_fault == {"b": (2,), "c": (4, 5)}
    assert [event.hosts for event in report.events] == [("b", "c"), ("a", "b", "c"), ("c",)]
    assert str(report) == (
        "rank 2 (host b) dissented in 1, rank 4 (host c) dissented in 1, "
        "group 1 abstained in 1, rank 5 (host c) miscalculated in 1 of 1 steps"
    )
    assert json.loads(report.to_json())["hosts"] == {str(r): h for r, h in enumerate("aabbcc")}


def test_a_host_of_which_every_rank_is_at_fault_is_one_thing():
    ledger = Ledger(GROUPS, hosts="aabbcd")
    everyone = Verdict((Vote((0,), dissenters=(2, 4)), Vote((1,), dissenters=(3,))))
    ledger.record(0, everyone)
    ledger.record(1, everyone, named={"miscalculation": (2, 3)})
    assert str(ledger.report()) == (
        "host b (ranks 2, 3) dissented in 2, rank 4 (host c) dissented in 2, "
        "host b (ranks 2, 3) miscalculated in 1 of 2 steps"
    )
    ledger.record(2, Verdict((FINE, Vote((1,), dissenters=(3,)))))
    assert str(ledger.report()).startswith("host b (ranks 2, 3) dissented in 2 to 3, rank 4")


def test_ranks_are_told_one_by_one_while_another_of_their_host_is_honest():
    ledger = Ledger(GROUPS, hosts="aabbbc")
    ledger.record(0, Verdict((Vote((0,), dissenters=(2, 4)), FINE)))
    assert str(ledger.report()) == (
        "rank 2 (host b) dissented in 1, rank 4 (host b) dissented in 1 of 1 steps"
    )


def test_on_one_host_its_name_is_left_out():
    ledger = Ledger(GROUPS, hosts=["a"] * 6)
    ledger.record(0, Verdict((Vote((0,), dissenters=(4,)), FINE)))
    assert str(ledger.report()) == "rank 4 dissented in 1 of 1 steps"
    assert ledger.report().events == (Event(0, "dissent", 0, (4,)),)
    assert ledger.report().hosts_at_fault == {"a": (4,)}


def test_a_report_without_hosts_has_none_at_fault():
    assert FaultReport(steps=1, dissents={4: 1}).hosts_at_fault == {}


def test_an_account_that_begins_anew_tells_what_comes_after():
    ledger, first, second = Ledger(GROUPS), Tally("SGD"), Tally("Adam")
    ledger.account_for(first)
    ledger.account_for(second)
    for tally in (first, second):
        tally.exchanges, tally.steps = 3, 2
    ledger.record(0, Verdict((FINE, Vote((1,), dissenters=(3,)))))
    before = "SGD: 2 steps in 3 exchanges; Adam: 2 steps in 3 exchanges"
    assert str(ledger.report()).endswith(before)
    ledger.begin_anew()
    assert ledger.report() == FaultReport()
    first.exchanges, first.steps = 5, 4
    ledger.record(1, Verdict((FINE, FINE)))
    assert str(ledger.report()) == "no fault in any of 1 steps; SGD: 2 steps in 2 exchanges"
    ledger.account_for(Tally("RMSprop"))
    assert str(ledger.report()).endswith("RMSprop: 0 steps in 0 exchanges")


def test_a_dissent_without_another_cause_is_logged_once_and_an_explained_one_each_time(caplog):
    ledger = Ledger(Groups(((0, 1, 2),)), hosts=["a", "b", "c"])
    lost = Verdict((Vote((0,), (2,)),))
    for step, cause in enumerate([Cause("compute"), Cause("compute"), Cause("data")]):
        ledger.record(step, lost, findings=Findings({2: cause}))
    assert [text[:6] for text in caplog.messages] == ["step 0", "step 2"]
    assert caplog.messages[1].endswith("it was given another batch than the others of its group")


def test_a_cause_that_is_found_later_is_entered_where_it_belongs(caplog):
    ledger = Ledger(Groups(((0, 1, 2),)), hosts=["a", "b", "c"])
    lost = Verdict((Vote((0,), (2,)),))
    for step in range(3):
        ledger.record(step, lost)
    ledger.explain({2: 1}, {2: Cause("state", ("parameters/w",), True)})
    report = ledger.report()
    assert [event.cause is not None for event in report.events] == [False, True, False]
    assert report.events[1].hosts == ("c",)
    # What lasted, also from before, has one cause.
    assert (report.causes, report.healed) == ({2: {"state": 3}}, {2: 1})
    assert report.hosts_at_fault == {}
    ledger.note(2, Findings())  # as after a function that was traced
    ledger.record(3, lost)
    assert ledger.report().causes == {2: {"state": 4}}
    for verdict in (Verdict((Vote((0,)),)), lost):
        ledger.record(4, verdict)
    assert ledger.report().causes == {2: {"state": 4}}
    assert ledger.report().hosts_at_fault == {"c": (2,)}
    assert "rank 2 (host c): it held another state than most (parameters/w)" in caplog.messages[-1]

"""Watches of several ranks in one process, over real sockets: what one tells, all others hear."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.waits import ExchangeTimeout, RankLeft, Waits, waits
from horovod_detox.remedies import TRY_AGAIN
from horovod_detox.watch import judge, known, leaving, watch
from horovod_detox.watch.beats import STOPPED, Beat, Finding
from horovod_detox.watch.channel import keepers
from horovod_detox.watch.processes import Neighbour
from horovod_detox.watch.watch import Watch


@pytest.fixture
def job():
    """Return what starts the watches of so many ranks."""
    waits.begin_anew()
    made = []

    def begin(size, timeout=60.0):
        hosts = ["a"] * size
        made.extend(InProcessCluster(size).run(lambda rank: Watch(rank, hosts, timeout)))
        return made

    yield begin
    for each in made:
        each.close()
    waits.begin_anew()


def until(happens, seconds=10.0):
    """Wait until something happens; return whether it did in time."""
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(happens())


def test_every_rank_hears_first_who_left_and_why(job):
    watches = job(4)
    assert watches[1].cause(0) is None
    watches[2].leave("ValueError: a bad sample (train.py:4)")
    for each in watches:
        cause = each.cause(5)
        assert isinstance(cause, RankLeft)
        text = r"rank 2 has left after \d+ exchanges: ValueError: a bad sample \(train.py:4\)"
        assert re.fullmatch(text, str(cause))
    watches[3].leave("it has waited in vain")
    assert until(lambda: watches[0]._departed == {2, 3})
    assert "rank 2 has left" in str(watches[1].cause(0))


def test_what_a_keeper_knows_of_a_silent_rank_explains_an_error_of_horovod(job, monkeypatch):
    watches = job(3)
    assert until(lambda: watches[0]._heard.keys() == {0, 1, 2})
    monkeypatch.setattr(watches[2], "_tell", lambda: None)
    assert until(lambda: "rank 2 has not answered for" in str(watches[0].cause(0)))
    assert "rank 1 has" not in str(watches[0].cause(0))
    assert watches[0].cause(0).is_explained


def test_a_keeper_that_hears_all_waits_for_a_word_as_long_as_others(job):
    watches = job(2)
    threading.Timer(2.5, watches[1].leave, ["SIGTERM"]).start()
    assert isinstance(watches[0].cause(4.0), RankLeft)


def test_rank_1_speaks_when_rank_0_has_left(job):
    watches = job(3)
    watches[0].leave("SIGTERM")
    assert re.fullmatch(r"rank 0 has left after \d+ exchanges: SIGTERM", str(watches[2].cause(5)))
    watches[0].close()
    watches[2].leave("sys.exit(3) (train.py:4)")
    assert until(lambda: watches[1]._departed == {0, 2})


def test_rank_1_speaks_at_once_when_rank_0_is_gone(job):
    watches = job(3)
    hub = watches[1]._hub
    assert hub is not None
    assert until(lambda: 2 in hub._identities)
    with subprocess.Popen(["sleep", "100"]) as child:
        for rank in (1, 2):
            watches[rank]._neighbours[0] = Neighbour(child.pid)
        watches[0].close()
        child.kill()
    cause = watches[2].cause(known.SILENT - 1)  # a launcher may end this rank in that time
    assert "rank 0 is gone without a word" in str(cause)
    assert watches[1].cause(5) is not None  # it tells the others first


def test_a_rank_that_a_launcher_ends_says_first_who_is_gone(job, monkeypatch, capfd):
    monkeypatch.setattr(watch, "SECONDS", 60.0)
    ends = []
    monkeypatch.setattr(watch.os, "_exit", ends.append)
    watches = job(2)
    with subprocess.Popen(["sleep", "100"]) as child:
        watches[1]._neighbours[0] = Neighbour(child.pid)
        child.kill()
    watches[1].dies_of = lambda number: "SIGTERM" if number == signal.SIGTERM else ""
    with waits.waiting("the exchange of step 0"):
        watches[1].wake.send(bytes([signal.SIGTERM]))
        assert until(lambda: ends)
    assert ends[0] == 128 + signal.SIGTERM
    said = capfd.readouterr().err
    assert said.startswith("horovod_detox: rank 1 stops waiting: rank 0 is gone without a word")


def test_whom_the_others_have_given_up_does_not_say_that_it_waits(job, capfd):
    for each in job(2):
        each._follow(
            Finding("rank 1 has been at a.py:4 for 60 s", ends="hvd.barrier", missing=(1,))
        )
        each.say(each.cause(0))
    waits, given_up = capfd.readouterr().err.splitlines()
    assert waits == "horovod_detox: rank 0 stops waiting: rank 1 has been at a.py:4 for 60 s"
    assert given_up.startswith("horovod_detox: the others have stopped waiting for rank 1: rank 1")


def test_a_signal_is_not_lost_when_watching_fails(job, monkeypatch):
    ends, (_, second) = [], job(2)
    monkeypatch.setattr(watch.os, "_exit", ends.append)
    monkeypatch.setattr(second, "_hear", lambda *args, **kwargs: 1 / 0)
    second.dies_of = lambda number: "SIGTERM" if number == signal.SIGTERM else ""
    second.wake.send(bytes([signal.SIGTERM]))
    assert until(lambda: ends)
    monkeypatch.undo()


def test_a_rank_that_leaves_ends_waits_for_it(job, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.1)
    monkeypatch.setattr(judge, "FAREWELL", 0.3)
    watches = job(3)
    with waits.waiting("the exchange of step 0", [1, 2]):
        watches[2].leave("its script has ended")
        # All of this process wait there; of rank 2 it counts that it has left.
        assert until(lambda: waits.ended() is not None)
        why = waits.ended()
        assert isinstance(why, RankLeft)
        assert why.is_explained
        assert until(watches[1].has_ended_waits)
    assert waits.ended() is None


def test_what_no_rank_says_is_refused_and_told_once(job, caplog):
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    watches = job(2)
    for message in (b"nonsense", Finding("x").to_bytes(), b"\x80\x04\x95"):
        watches[1]._spokes[0].send(message, is_urgent=True)
    assert until(lambda: any("cannot read" in text for text in caplog.messages))
    watches[1].leave("its script has ended")
    assert until(lambda: watches[0]._departed == {1})
    assert len([text for text in caplog.messages if "of rank 1 that it cannot read" in text]) == 1


def test_a_keeper_speaks_to_all_and_logs_what_ends_nothing(job, caplog, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.1)
    caplog.set_level(logging.WARNING, logger="horovod_detox")
    watches = job(3)
    hub = watches[0]._hub
    assert hub is not None
    assert until(lambda: hub._identities.keys() == {1, 2})  # who was never heard is told nothing
    found = [[Finding("rank 1 is slow"), Finding("over", ends="x", missing=(1,))]]
    monkeypatch.setattr(watches[0]._judge, "look", lambda now: found.pop() if found else [])
    assert until(lambda: "rank 1 is slow" in caplog.messages)
    with waits.waiting("x", once=True):
        assert until(lambda: waits.ended() is not None)
    assert caplog.messages == ["rank 1 is slow"]
    assert all(isinstance(each.cause(5), ExchangeTimeout) for each in watches)
    waits.pace.note()  # the script has caught the error, and its ranks have gone on together
    assert [each.cause(0) for each in watches] == [None] * 3
    monkeypatch.undo()
    watches[2].leave("SIGTERM")
    assert re.match(r"rank 2 has left .* SIGTERM", str(watches[1].cause(5)))


def test_a_wait_that_nobody_completes_is_ended_by_the_same_words_on_all_ranks(job):
    watches = job(3, timeout=0.5)
    with waits.waiting("an allreduce", once=True):
        assert until(lambda: waits.ended() is not None)
        ended = str(waits.ended())
    assert re.match(
        r"3 ranks have been waiting for \d s in an allreduce, and no rank is mis", ended
    )
    assert until(lambda: {str(each.cause(0)) for each in watches} == {ended})


def test_a_possible_wait_counts_from_when_nothing_has_moved(job):
    (watch,) = job(1)
    sampler = watch._sampler = types.SimpleNamespace(sample=lambda: "at a.py:1", still=0.5)
    with waits.waiting("a function", is_possible=True):
        assert watch._beat().waiting is None
        sampler.still = 100.0
        assert watch._beat().waiting.seconds < 1
        time.sleep(1.2)
        waiting = watch._beat().waiting
        assert (waiting.what, waiting.is_possible) == ("a function", True)
        assert waiting.seconds > 1
        sampler.still = 1.1
        assert watch._beat().waiting.seconds == 1.1
        with waits.waiting("an exchange inside of it"):
            assert watch._beat().waiting.what == "an exchange inside of it"
        sampler.still = 100.0
        assert watch._beat().waiting.seconds < 1
    assert watch._beat().waiting is None


def test_a_wait_that_stays_blocked_is_cut(job, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.1)
    monkeypatch.setattr(watch, "ABORT_AFTER", 0.3)
    watches = job(2)
    cut = []
    watches[0]._abort = lambda: cut.append(time.monotonic()) or True
    with waits.waiting("y"):
        began = time.monotonic()
        watches[0]._follow(Finding("too late", ends="y", missing=(1,)))
        assert until(lambda: cut)
        assert cut[0] - began >= 0.3
        time.sleep(0.5)
    assert len(cut) == 1


def test_a_process_that_is_blocked_where_nothing_can_be_cut_ends(job, monkeypatch):
    """As under MPI, whose connections are those of its launcher."""
    monkeypatch.setattr(watch, "SECONDS", 0.1)
    monkeypatch.setattr(watch, "ABORT_AFTER", 0.3)
    watches, codes = job(2), []
    monkeypatch.setattr(os, "_exit", codes.append)
    watches[0]._abort = lambda: False
    with waits.waiting("y"):
        watches[0]._follow(Finding("too late", ends="y", missing=(1,)))
        assert until(lambda: codes)
    assert codes[0] == TRY_AGAIN


def test_a_stopped_rank_is_killed_when_its_limit_is_over_and_no_other_is(job):
    (first, _) = job(2)
    code = "import time; print('begun', flush=True); time.sleep(100)"
    children = []
    for rank in (1, 7):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        first._neighbours[rank] = Neighbour(child.pid)
    stopped, sleeping = children
    stopped.send_signal(signal.SIGSTOP)
    assert until(lambda: first._neighbours[1].look().state == STOPPED)
    began = time.monotonic()
    first._follow(Finding("too late", ends="z", missing=(1, 7)))
    assert stopped.wait(10) == -signal.SIGKILL
    assert time.monotonic() - began > watch.UNTIL_SAID  # by then the others have heard of it
    assert sleeping.poll() is None
    sleeping.kill()
    sleeping.wait()
    for child in children:
        child.stdout.close()


def test_a_watch_that_fails_goes_on_and_says_so_once(job, caplog, monkeypatch):
    """Who does not watch any more would be taken for a rank that does not answer."""
    monkeypatch.setattr(watch, "SECONDS", 0.1)
    watches = job(2)
    failures = [ValueError("a line that nobody has thought of")] * 3

    def sample():
        raise failures.pop()

    monkeypatch.setattr(watches[1]._sampler, "sample", sample)
    assert until(lambda: not failures)
    monkeypatch.undo()
    watches[1].leave("its script has ended")
    assert until(lambda: 1 in watches[0]._departed)
    assert [text for text in caplog.messages if "failed" in text] == [
        "rank 1: watching the other ranks failed, and is tried again"
    ]


def test_ranks_that_were_let_down_do_not_wait_for_each_other(job):
    """Only for the process of the rank that is the cause, so that its launcher sees it first."""
    watches = job(3)
    watches[2].leave("ValueError: bad")
    assert watches[0].cause(5) is not None
    assert watches[1].cause(5) is not None
    watches[1].leave("it stopped waiting for another rank")
    assert until(lambda: watches[0]._departed == {1, 2})
    assert watches[0]._culprits == {2}


def test_what_watching_costs(job):
    """A beat takes well below a millisecond of processor time: of a core, less than 0.2 %."""
    (first, _) = job(2)
    began = time.thread_time()
    for _ in range(200):
        message = first._beat().to_bytes()
        Beat.from_bytes(message)
    assert (time.thread_time() - began) / 200 < 0.005


def test_keepers_are_on_two_hosts_if_there_are_two():
    assert keepers(["a", "a", "b"]) == (0, 2)
    assert keepers(["a"] * 9) == (0, 1)
    assert keepers(["a"]) == (0,)


def test_waits_are_ended_by_name():
    mine = Waits()
    error = ExchangeTimeout("nobody came")
    with mine.waiting("outer", [1]), mine.waiting("inner"):
        wait = mine.outermost()
        assert wait is not None
        assert (wait.what, wait.ranks) == ("outer", (1,))
        mine.end("else", error)
        assert mine.ended() is None
        mine.end("inner", error)
        mine.end("inner", ExchangeTimeout("later"))
        assert mine.ended() is error
    assert mine.outermost() is None
    with mine.waiting("inner"):  # another one of this name
        assert mine.ended() is None
    mine.end("the exchange of step 3", error)
    with mine.waiting("the exchange of step 3", once=True):  # it is over, though this rank is late
        assert mine.ended() is error
    mine.begin_anew()
    with mine.waiting("the exchange of step 3", once=True):
        assert mine.ended() is None


def test_the_limits_are_in_order():
    assert watch.SECONDS < judge.SURE < known.SILENT < judge.FIRST_WORD
    assert watch.SECONDS < leaving.UNTIL_ALL_HEARD < watch.ABORT_AFTER < watch.EXIT_AFTER

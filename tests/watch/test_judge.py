"""Who is found missing, from what the ranks tell; a case each, in text, without clocks."""

import re

import pytest

from horovod_detox.watch.beats import GONE, IN_IO, RUNNING, SLEEPING, STOPPED, Beat, Seen, Waiting
from horovod_detox.watch.judge import JOIN, Judge

EXCHANGE = "the exchange of step 8#detox.0.0"
FUNCTION = "a function with hvd.allreduce('loss')"
"""Where a rank waits or computes."""
AT = "at train.py:41 (time.sleep(100))"


class Job:
    """Ranks that tell what they do every half second, and what the judge finds."""

    def __init__(self, size=3, timeout=60.0, hosts=None):
        self.judge = Judge(hosts or ["a"] * size, timeout, 0.0)
        self.now = 0.0
        self.since = {}
        self.found = []

    def run(self, seconds, ranks, silent=()):
        """Let time pass.

        Args:
            seconds: so much of it.
            ranks: what each does: a text that it waits in, or the fields of its beat.
            silent: the ranks that tell nothing.
        """
        end = self.now + seconds
        began = self.now
        while self.now < end:
            self.now += 0.5
            for rank, does in enumerate(ranks):
                if rank in silent:
                    continue
                fields = dict(does) if isinstance(does, dict) else {"waiting": does}
                if "still" in fields:
                    fields["still"] += self.now - began
                if what := fields.get("waiting"):
                    since = self.since.setdefault((rank, what), self.now)
                    is_possible = what == FUNCTION
                    of = fields.pop("of", ())
                    fields["waiting"] = Waiting(what, of, self.now - since, is_possible)
                self.judge.hear(rank, Beat(step=8, **fields), self.now)
            self.found += [(self.now, finding) for finding in self.judge.look(self.now)]

    def said(self):
        return [(now, each.text) for now, each in self.found if not each.ends and each.left is None]

    def ends(self):
        return [(now, each) for now, each in self.found if each.ends]


STANDS = {"place": AT, "still": 0.0}
WORKS = {"place": AT}


def test_a_rank_that_stands_still_is_named_then_ends_the_wait():
    job = Job()
    job.run(100, [EXCHANGE, EXCHANGE, STANDS])
    times = [now for now, _ in job.said()]
    assert [round(now) for now in times] == [11, 22, 44]
    assert re.fullmatch(
        re.escape(f"rank 2 has been {AT} for 11 s; 2 ranks have been waiting for 10 s in ")
        + "the exchange of step 8",
        job.said()[0][1],
    )
    ((now, end),) = job.ends()
    assert (round(now), end.ends, end.missing) == (60, EXCHANGE, (2,))
    assert end.text.endswith(
        "2 ranks have been waiting for 60 s in the exchange of step 8. The limit is "
        "Detox(timeout=60): set a longer one if the script needs it"
    )


def test_a_rank_that_is_at_work_may_take_three_times_as_long():
    job = Job()
    job.run(300, [EXCHANGE, WORKS, EXCHANGE])
    ((now, end),) = job.ends()
    assert round(now) == 180
    assert f"rank 1 is at work, {AT}" in end.text
    assert "The limit is 3 x Detox(timeout=60), as it is at work: " in end.text


def test_one_that_stands_still_ends_a_wait_for_several():
    job = Job()
    job.run(200, [EXCHANGE, WORKS, STANDS])
    assert [round(now) for now, _ in job.ends()] == [60]


def test_one_that_comes_back_is_said_to_be_and_ends_nothing():
    job = Job()
    job.run(30, [STANDS, EXCHANGE, EXCHANGE])
    job.run(10, ["hvd.allreduce"] * 3)
    job.run(30, [WORKS, WORKS, WORKS])
    texts = [text for _, text in job.said()]
    assert texts[-1] == "rank 0 is back"
    assert len(texts) == 3
    assert not job.ends()


def test_who_does_not_answer_is_not_said_to_be_back():
    job = Job()
    job.run(5, [WORKS] * 3)
    job.run(15, [EXCHANGE, EXCHANGE, None], silent=[2])
    job.run(15, [WORKS, WORKS, None], silent=[2])  # the others have given up
    assert len(job.found) == 1


def test_slow_steps_delay_the_word():
    job = Job()
    waits = {"waiting": EXCHANGE, "median": 5.0}
    job.run(40, [waits, waits, STANDS])
    assert [round(now) for now, _ in job.said()] == [26]


@pytest.mark.parametrize(
    ("state", "text", "ends_at"),
    [
        (STOPPED, "rank 2 has been stopped (SIGSTOP) for 1[01] s, last seen at", 61),
        (SLEEPING, r"rank 2 has not answered for 1[01] s \(sleeping\), last seen at", 61),
        (IN_IO, r"rank 2 has not answered for 1[01] s \(in I/O\), last seen at", 61),
        (RUNNING, "a function holds Python's interpreter lock", 181),
        (None, "rank 2 has not answered for 1[01] s, last seen at", 61),
    ],
)
def test_a_rank_that_does_not_answer(state, text, ends_at):
    job = Job()
    job.run(5, [WORKS] * 3)
    told = {"waiting": EXCHANGE}
    for _ in range(500):
        still = 0.0 if state is RUNNING else job.now - 5
        seen = {"seen": {2: Seen(state, still)}} if state else {}
        job.run(0.5, [told, told | seen, None], silent=[2])
        if job.ends():
            break
    assert re.search(text.replace("(SIGSTOP)", r"\(SIGSTOP\)"), job.said()[0][1])
    assert job.now - 5 == pytest.approx(ends_at, abs=1.5)


def test_a_rank_that_waits_is_missing_when_it_is_stopped():
    job = Job()
    job.run(5, [EXCHANGE] * 3)
    assert not job.found
    for _ in range(30):
        seen = {"waiting": EXCHANGE, "seen": {1: Seen(STOPPED, job.now - 5)}}
        job.run(0.5, [EXCHANGE, None, seen], silent=[1])
    assert job.said()[0][1].startswith("rank 1 has been stopped")


@pytest.mark.parametrize("why", ["ValueError: bad (train.py:4)", "sys.exit(0) (train.py:9)"])
def test_why_a_rank_leaves_is_told_at_once_and_ends_waits_that_go_on(why):
    job = Job()
    job.run(2, [EXCHANGE, WORKS, EXCHANGE])
    job.run(10, [EXCHANGE, {"left": why}, EXCHANGE])
    (told, departure), (now, end) = job.found
    assert departure.text == f"rank 1 has left after 8 exchanges: {why}"
    assert (departure.left, told) == (1, 2.5)
    assert 5 < now < 7
    assert end.text == f"{departure.text}; 2 ranks wait for it in the exchange of step 8"


def test_who_leaves_by_an_error_of_horovod_is_not_the_only_one_named():
    """Nobody hears the rank that was lost: its cable may be pulled out."""
    job = Job(hosts=["a", "a", "b"])
    job.run(2, [EXCHANGE, EXCHANGE, WORKS])
    job.run(6, [EXCHANGE, EXCHANGE, {}], silent=[2])
    error = "HorovodInternalError: Timed out"
    job.run(9, [EXCHANGE, {"left": error}, {}], silent=[2])
    departure = job.found[0][1]
    lost = f"rank 2 (host b) has not answered for 6 s, last seen {AT}"
    assert departure.text == f"rank 1 (host a) has left after 8 exchanges: {error}; {lost}"
    assert job.ends()[0][1].text.startswith(departure.text)


def test_who_does_not_answer_while_another_is_stopped_is_not_blamed():
    """It may be blocked in Horovod, with the interpreter lock, as the other is stopped."""
    job = Job(size=4)
    seen = {2: Seen(STOPPED, 0.0), 3: Seen(SLEEPING, 0.0)}
    job.run(2, [{}, {}, {}, {}])
    job.run(100, [{"waiting": EXCHANGE, "seen": seen}, EXCHANGE, {}, {}], silent=[2, 3])
    ((_, end),) = job.ends()
    assert end.missing == (2,)
    assert end.text.startswith("rank 2 has been stopped (SIGSTOP)")
    assert "rank 3" not in end.text


def test_what_ends_one_wait_ends_the_others_for_the_same_rank():
    """Else their ranks lose their connections first, as the others leave."""
    job = Job(size=4)
    job.run(10, [{}, EXCHANGE, EXCHANGE, STANDS])
    pair = {"waiting": "hvd.allreduce('pair')", "of": (0, 3)}
    job.run(70, [pair, EXCHANGE, EXCHANGE, {"place": AT, "still": 10.0}])
    (first, one), (second, other) = job.ends()
    assert (first, one.ends) == (second, EXCHANGE)
    assert other.ends == "hvd.allreduce('pair')"
    assert re.search(r"rank 0 has been waiting for \d\d s in hvd.allreduce", other.text)


def test_who_leaves_when_all_is_done_ends_nothing():
    """The others are on their way out of the last collective, but did not say so yet."""
    job = Job()
    job.run(2, [EXCHANGE] * 3)
    job.run(2, [EXCHANGE, {"left": "its script has ended"}, EXCHANGE])
    job.run(9, [WORKS, {"left": "its script has ended"}, WORKS])
    assert not job.ends()


def test_who_leaves_while_nobody_waits_ends_nothing():
    job = Job()
    job.run(2, [WORKS, {"left": "its script has ended"}, WORKS])
    assert [finding.left for _, finding in job.found] == [1]


def test_a_rank_whose_end_a_neighbour_sees_is_gone():
    job = Job()
    job.run(1, [WORKS, WORKS, WORKS])
    seen = {"waiting": EXCHANGE, "seen": {2: Seen(GONE, hint="memory ran out")}}
    job.run(2, [seen, EXCHANGE, None], silent=[2])
    text = f"rank 2 is gone without a word (memory ran out), last seen {AT}, after 8 exchanges"
    assert job.found[0][1].text == text
    assert job.ends()[0][1].missing == (2,)


def test_only_a_rank_of_its_host_can_say_that_another_is_gone():
    job = Job(hosts=["a", "a", "b"])
    seen = {"waiting": EXCHANGE, "seen": {2: Seen(GONE), 77: Seen(GONE)}}
    job.run(5, [seen, EXCHANGE, WORKS])
    assert not job.found


def test_a_connection_that_ends_is_the_end_of_a_rank_that_does_not_come_back():
    job = Job()
    job.run(2, [WORKS] * 3)
    job.judge.cut(1, job.now)
    job.run(3, [EXCHANGE, WORKS, EXCHANGE])
    assert not job.found
    job.judge.cut(1, job.now)
    job.run(3, [EXCHANGE, None, EXCHANGE], silent=[1])
    assert job.ends()[0][1].text.startswith("rank 1 is gone without a word")


def test_who_waits_elsewhere_is_not_missing_but_whom_he_waits_for():
    """Rank 2 waits in a process set for rank 3, which stands still."""
    job = Job(size=4)
    pair = {"waiting": "hvd.allreduce('pair')", "of": (2, 3)}
    job.run(15, [EXCHANGE, EXCHANGE, pair, STANDS])
    assert {text[:7] for _, text in job.said()} == {"rank 3 "}


def test_ranks_outside_of_a_process_set_are_not_missing():
    job = Job(size=4)
    pair = {"waiting": "hvd.allreduce('pair')", "of": (0, 1)}
    job.run(15, [pair, STANDS, STANDS, WORKS])
    assert {text[:7] for _, text in job.said()} == {"rank 1 "}


def test_ranks_that_wait_for_each_other_end_where_most_are():
    job = Job()
    lost = {"waiting": "hvd.allreduce('loss')", "place": AT}
    job.run(70, [EXCHANGE, lost, EXCHANGE])
    ((now, end),) = job.ends()
    assert (round(now), end.ends, end.missing) == (60, EXCHANGE, (1,))
    assert f"rank 1 waits in hvd.allreduce('loss'), {AT}; 2 ranks wait in the exch" in end.text
    assert "different paths through the script" in end.text


def test_a_wait_that_all_are_in_ends_too():
    """As when NCCL or the network between two hosts is stuck."""
    job = Job(timeout=20.0)
    job.run(59, [EXCHANGE] * 3)
    assert not job.found
    job.run(100, [EXCHANGE] * 3)
    ((now, end),) = job.found
    assert 60 <= now < 62
    assert (end.ends, end.missing) == (EXCHANGE, ())
    waited = "3 ranks have been waiting for 60 s in the exchange of step 8, and no rank is missing"
    assert end.text.startswith(waited)
    assert "The limit is 3 x Detox(timeout=20): look at the network between the hosts" in end.text


def test_who_is_missing_while_others_may_wait_for_it_is_named():
    job = Job()
    job.run(70, [FUNCTION, FUNCTION, STANDS])
    assert job.said()[0][1].startswith("rank 2 has been at train.py:41")
    ((now, end),) = job.ends()
    assert (round(now), end.ends, end.missing) == (60, FUNCTION, (2,))
    job = Job()
    job.run(300, [FUNCTION, FUNCTION, WORKS])
    assert [round(now) for now, _ in job.ends()] == [180]


def test_ranks_that_may_all_compute_are_not_ended():
    job = Job(timeout=20.0)
    job.run(300, [FUNCTION] * 3)
    assert not job.found
    job.run(5, [FUNCTION, {"left": "its script has ended"}, FUNCTION])
    job.run(300, [FUNCTION, {"left": "its script has ended"}, FUNCTION])
    assert not job.ends()


def test_who_may_compute_is_missing_where_others_wait_and_nobody_else_is():
    job = Job()
    computes = {"waiting": FUNCTION, "place": AT, "still": 0.0}
    job.run(70, [EXCHANGE, EXCHANGE, computes])
    ((now, end),) = job.ends()
    assert (round(now), end.ends, end.missing) == (60, EXCHANGE, (2,))
    assert end.text.startswith("rank 2 has been at train.py:41")
    job = Job(size=4)
    job.run(70, [EXCHANGE, EXCHANGE, FUNCTION, STANDS])
    assert {end.missing for _, end in job.ends()} == {(3,)}
    assert {end.ends for _, end in job.ends()} == {EXCHANGE, FUNCTION}


def test_who_has_joined_is_not_missing_and_may_wait_for_others_at_work():
    job = Job(timeout=20.0)
    job.run(200, [JOIN, WORKS, WORKS])
    assert not job.found
    job.run(15, [JOIN, EXCHANGE, STANDS])
    assert "rank 2 has been" in job.said()[-1][1]


def test_what_was_heard_at_another_time_is_no_absence():
    """Steps of half a second: some ranks are always seen one step behind."""
    job = Job()
    for step in range(100):
        what = f"the exchange of step {step}"
        job.run(0.5, [what, WORKS if step % 2 else what, WORKS])
    assert not job.found


def test_of_ranks_that_were_never_heard_nothing_is_known():
    """As behind a firewall: their absence must not end a job that goes on."""
    job = Job(timeout=20.0)
    job.run(300, [EXCHANGE, EXCHANGE, None], silent=[2])
    (text,) = [text for _, text in job.said()]
    assert text.startswith("nothing was ever heard from ranks [2]")
    assert not job.ends()


def test_hosts_are_named_if_there_are_several_and_not_all_of_many_ranks():
    job = Job(hosts=["a"] * 4 + ["b"] * 6)
    job.run(11, [EXCHANGE] * 4 + [STANDS] * 6)
    text = job.said()[0][1]
    assert "rank 4 (host b) has been" in text
    assert "rank 7 (host b)" in text
    assert "rank 8" not in text
    assert "; 2 more ranks; 4 ranks have been waiting" in text

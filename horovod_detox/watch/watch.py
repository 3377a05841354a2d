"""The thread that watches the job: it tells what this rank does, and hears who is missing."""

import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

import zmq

from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.exchange.waits import ExchangeTimeout, RankLeft, Wait, waits
from horovod_detox.remedies import TRY_AGAIN
from horovod_detox.watch.beats import (
    CALM,
    LONG,
    MOST_TEXT,
    STOPPED,
    URGENT,
    BadMessage,
    Beat,
    Finding,
    Waiting,
)
from horovod_detox.watch.channel import Hub, Spoke, address, keepers
from horovod_detox.watch.judge import Judge
from horovod_detox.watch.known import SILENT
from horovod_detox.watch.places import Sampler
from horovod_detox.watch.processes import Identity, Neighbour

SECONDS = 0.5
"""From one beat to the next."""
ABORT_AFTER = 2.0
"""Seconds from the end of a wait until Horovod's connections are cut, if it is still waited; where
there are none, the process is ended."""
EXIT_AFTER = 10.0
"""And until the process is ended."""
LEAVE_WITHIN = 1.0
"""Seconds that a process may spend on telling the others that it leaves."""
UNTIL_SAID = 1.0
"""Seconds from the end of a wait until a stopped rank is killed: its launcher then ends the others,
who have said by then whom they waited for."""
UNTIL_SENT = 0.1
"""Seconds that ZeroMQ's thread gets for what it was given."""

log = logging.getLogger("horovod_detox")


class Watch:
    """One rank's part in watching the job.

    Args:
        collectives: of all ranks, which come here together.
        hosts: of the ranks.
        timeout: for so many seconds may others wait for a rank that stands still.
        abort: ends collectives of Horovod that this process is blocked in; returns whether it can.

    Attributes:
        wake: has this thread wake up, when something is sent to it: the number of a signal, or 0.
        dies_of: returns, given the number of a signal, what to tell the others before this process
            ends by it; "": it does not.
    """

    def __init__(
        self,
        collectives: Collectives,
        hosts: Sequence[str],
        timeout: float,
        abort: Callable[[], bool] = lambda: True,
    ) -> None:
        self.rank, self._hosts, self._abort = collectives.rank, tuple(hosts), abort
        self.dies_of: Callable[[int], str] = lambda number: ""
        self._departed: set[int] = set()
        self._cause: ExchangeTimeout | None = None
        self._cause_came_at = 0
        self._culprits: set[int] = set()
        self._to_kill: dict[int, float] = {}
        self._left = ""
        self._ended: dict[Wait, float] = {}
        self._said = ""
        self._is_victim = self._is_closing = self._is_closed = False
        self._has_aborted = self._told_of_bad_messages = self._told_of_failure = False
        self._news = threading.Condition()
        self._has_told = threading.Event()
        self._wake_reader, self.wake = socket.socketpair()
        self.wake.setblocking(False)
        self._context = zmq.Context()
        self._sampler = Sampler()
        self._judge = Judge(hosts, timeout, time.monotonic())
        self._keepers = keepers(hosts)
        self._hub: Hub | None = None
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._spokes: dict[int, Spoke] = {}
        self._neighbours: dict[int, Neighbour] = {}
        self._meet(collectives)
        self._thread = threading.Thread(target=self._run, name="horovod_detox watch", daemon=True)
        self._thread.start()

    def _meet(self, collectives: Collectives) -> None:
        """Learn from all ranks how they are reached."""
        keys, me = zmq.curve_keypair(), Identity.mine()
        mine = {"key": keys[0].decode(), "pid": me.pid, "kernel": me.kernel}
        if self.rank in self._keepers:
            self._hub = Hub(address(self._hosts[self.rank], self._hosts), self._context)
            mine |= {"endpoints": self._hub.endpoints, "hub": self._hub.public_key}
        everyone = share(collectives, "watch", mine)
        if self._hub:
            self._hub.admit([theirs["key"] for theirs in everyone])
        for keeper in self._keepers:
            if keeper != self.rank:
                endpoints, key = everyone[keeper]["endpoints"], everyone[keeper]["hub"]
                self._spokes[keeper] = Spoke(endpoints, key, keys, self._context)
        self._judge.machines = tuple(theirs["kernel"] for theirs in everyone)
        for rank, theirs in enumerate(everyone):
            if rank != self.rank and theirs["kernel"] == me.kernel != "":
                with suppress(OSError):
                    self._neighbours[rank] = Neighbour(theirs["pid"])

    def limit(self, timeout: float) -> None:
        """Give ranks that stand still another limit."""
        self._judge.timeout = timeout

    def leave(self, why: str) -> None:
        """Tell the others why this rank leaves the job, if it has not told yet."""
        if not self._left:
            self._left = why[:MOST_TEXT]
            self._wake_up()
            self._has_told.wait(LEAVE_WITHIN)

    def close(self) -> None:
        """Watch no more."""
        self._is_closing = True
        self._wake_up()
        self._thread.join(LEAVE_WITHIN)

    def has_ended_waits(self) -> bool:
        """Return whether this rank was in a wait that led nowhere."""
        return bool(self._ended)

    def cause(self, seconds: float) -> ExchangeTimeout | None:
        """Return what the job ends by, as far as is known, waiting for such a word for a while."""
        with self._news:
            self._news.wait_for(self._known_cause, seconds / 2)
            if self._silence() is None:  # else this is a keeper, for whose word the others wait
                self._news.wait_for(self._known_cause, seconds / 2)
            cause = self._known_cause() or self._stopped_neighbour() or self._silence()
            self._is_victim |= cause is not None
            return cause

    def _stopped_neighbour(self) -> ExchangeTimeout | None:
        """Return that a rank of this machine is stopped: then nobody may have said so."""
        for rank, neighbour in self._neighbours.items():
            if neighbour.look().state == STOPPED:
                return _explained(f"rank {rank} has been stopped (SIGSTOP)")
        return None

    def _silence(self) -> ExchangeTimeout | None:
        """Return that ranks do not answer: Horovod may end waits for them before it is said."""
        now, heard = time.monotonic(), self._heard.copy()
        ranks = [rank for rank, (_, at) in heard.items() if now - at > SILENT]
        return _explained(text) if (text := self._judge.silence(ranks, now)) else None

    def _known_cause(self) -> ExchangeTimeout | None:
        """Return what the job ends by; None: it does not, and not when it has gone on since."""
        has_gone_on = waits.pace.steps > self._cause_came_at
        return None if has_gone_on and not isinstance(self._cause, RankLeft) else self._cause

    def say(self, cause: ExchangeTimeout) -> None:
        """Say, once, why this rank waits no more, which is not its own fault."""
        text = str(cause)
        if not self._said or not (text.startswith(self._said) or self._said.startswith(text)):
            self._said = text
            does = f"rank {self.rank} stops waiting"
            if self.rank in self._culprits:
                does = f"the others have stopped waiting for rank {self.rank}"
            print(f"horovod_detox: {does}: {cause}", file=sys.stderr, flush=True)

    def wait_for_their_end(self, seconds: float) -> None:
        """Let the processes on this host that are the cause of its end do so before it."""
        until = time.monotonic() + seconds
        leaving = [self._neighbours[rank] for rank in self._culprits & self._neighbours.keys()]
        while time.monotonic() < until and not all(each.is_gone() for each in leaving):
            time.sleep(0.05)

    def _wake_up(self) -> None:
        with suppress(OSError):
            self.wake.send(b"\0")

    def _run(self) -> None:
        sockets = [spoke.socket for spoke in self._spokes.values()]
        if self._hub:
            sockets += [self._hub.alarm, self._hub.monitor]
        poller = zmq.Poller()
        for each in (self._wake_reader, *sockets, *self._neighbours.values()):
            poller.register(each, select.POLLIN)
        due = time.monotonic()
        while not self._is_closed:
            try:
                due = self._turn(poller, due)
            except Exception:  # a rank whose watch has ended would be taken for a silent one
                if not self._told_of_failure:
                    self._told_of_failure = True
                    log.exception(
                        "rank %d: watching the other ranks failed, and is tried again", self.rank
                    )
                due = time.monotonic() + SECONDS
                time.sleep(SECONDS)

    def _turn(self, poller: zmq.Poller, due: float) -> float:
        """Wait for something to do, and do it; return when the next beat is due."""
        ready = dict(poller.poll(int(1000 * max(0, due - time.monotonic()))))
        signals = b""
        if self._wake_reader.fileno() in ready:
            signals = self._wake_reader.recv(1000)
            due = 0.0
        for neighbour in self._neighbours.values():
            if neighbour.fileno() in ready:
                poller.unregister(neighbour)
                due = 0.0
        if self._hub is not None and self._hub.alarm in ready:
            due = 0.0
        try:
            self._hear(ready, is_due=time.monotonic() >= due)
            if time.monotonic() >= due:
                due = time.monotonic() + SECONDS
                self._tell()
        finally:
            self._die_of(signals)
        if self._is_closing:
            self._end()
        return due

    def _die_of(self, signals: bytes) -> None:
        """End this process by a signal, if it is to: its main thread may be blocked."""
        for number in signals:
            if why := self.dies_of(number):
                cause = self._known_cause()
                if cause and (self._is_victim or waits.outermost() is not None):
                    self.say(cause)
                self._left = self._left or why
                self._tell()
                time.sleep(UNTIL_SENT)
                os._exit(128 + number)

    def _end(self) -> None:
        self._is_closed = True
        for each in (*self._spokes.values(), *([self._hub] if self._hub else [])):
            each.close()
        for neighbour in self._neighbours.values():
            neighbour.close()
        self._context.term()
        self._wake_reader.close()
        self.wake.close()

    def _hear(self, ready: Collection[object], is_due: bool) -> None:
        """Take in what others have told: what is usual only when it is due to be judged."""
        for keeper, spoke in self._spokes.items():
            for message in spoke.receive() if spoke.socket in ready else ():
                with self._only_good_ones(keeper):
                    self._follow(Finding.from_bytes(message))
        if self._hub is None:
            return
        now = time.monotonic()
        for rank, message in self._hub.receive() if is_due else ():
            self._heard[rank] = message, now
        for rank in self._hub.ended() if self._hub.monitor in ready else ():
            self._judge.cut(rank, now)

    def _tell(self) -> None:
        """Tell what this rank does; a keeper then judges."""
        beat = self._beat()
        message = beat.to_bytes()
        for spoke in self._spokes.values():
            spoke.send(message, message[:1] == URGENT)
        if beat.left:
            self._has_told.set()
        now = time.monotonic()
        if self._hub is not None:
            self._heard[self.rank] = message, now
            self._look(now)
        self._end_what_is_blocked(now)

    def _look(self, now: float) -> None:
        """Judge, if there is a need to, and this keeper is the one to do it."""
        earlier = self._keepers[: self._keepers.index(self.rank)]
        urgent = [rank for rank, (message, _) in self._heard.items() if message[:1] == URGENT]
        self._judge_by({*earlier, *urgent})
        if not all(self._judge.is_away(rank, now) for rank in earlier):
            return  # they do
        is_calm = all(message[:1] == CALM for message, _ in self._heard.values())
        if not is_calm or self._judge.is_watchful():
            self._judge_by(self._heard.keys())
            self._publish(self._judge.look(now))

    def _judge_by(self, ranks: Collection[int]) -> None:
        """Let the judge hear what some ranks have told last."""
        for rank in ranks:
            if rank in self._heard:
                message, at = self._heard[rank]
                with self._only_good_ones(rank):
                    self._judge.hear(rank, Beat.from_bytes(message), at)

    def _beat(self) -> Beat:
        wait, place = waits.outermost(), self._sampler.sample()
        waiting = None
        if wait is not None and not wait.is_possible:
            waiting = Waiting(wait.what, wait.ranks, time.monotonic() - wait.since)
        elif wait is not None and self._sampler.still >= LONG:
            seconds = time.monotonic() - max(wait.since, waits.latest_end)
            waiting = Waiting(wait.what, wait.ranks, min(seconds, self._sampler.still), True)
        is_due = waiting is not None and waiting.seconds > SILENT
        seen = {
            rank: neighbour.look()
            for rank, neighbour in self._neighbours.items()
            if is_due or neighbour.is_gone()
        }
        return Beat(
            step=waits.pace.steps,
            median=waits.pace.median(),
            place=place[:MOST_TEXT],
            still=self._sampler.still,
            waiting=waiting,
            seen=seen,
            left=self._left,
        )

    def _publish(self, findings: Sequence[Finding]) -> None:
        """Tell all what was found; what ends nothing is for whoever reads this rank's output."""
        assert self._hub is not None
        for finding in findings:
            if finding.left is not None or finding.ends:
                self._hub.tell(finding.to_bytes(), is_lasting=finding.left is not None)
                self._follow(finding)
            else:
                log.warning("%s", finding.text)

    def _follow(self, finding: Finding) -> None:
        """Do what a keeper has found."""
        has_left = finding.left is not None or self._departed & set(finding.missing)
        why = _explained(finding.text, RankLeft if has_left else ExchangeTimeout)
        with self._news:
            if finding.left is not None:
                self._departed.add(finding.left)
            if self._known_cause() is None:
                self._cause, self._cause_came_at = why, waits.pace.steps
                self._culprits = {*finding.missing} if finding.left is None else {finding.left}
            self._news.notify_all()
        if not finding.ends:
            return
        waits.end(finding.ends, why)
        wait = waits.outermost()
        if wait is not None and wait.what == finding.ends:
            self._ended.setdefault(wait, time.monotonic())
            self.say(why)  # at once, as Horovod may not survive the end of another rank
        self._to_kill |= dict.fromkeys(finding.missing, time.monotonic() + UNTIL_SAID)

    def _end_what_is_blocked(self, now: float) -> None:
        """End stopped ranks, and a wait that is still waited: in Horovod, or in a framework."""
        for rank in self._neighbours.keys() & {r for r, at in self._to_kill.items() if now > at}:
            del self._to_kill[rank]
            if self._neighbours[rank].look().state == STOPPED:
                self._neighbours[rank].kill()
        wait = waits.outermost()
        if wait is None or wait not in self._ended:
            return
        blocked = now - self._ended[wait]
        can_end = True
        if blocked > ABORT_AFTER and not self._has_aborted:
            self._has_aborted = True
            can_end = self._abort()
        if blocked > EXIT_AFTER or not can_end:
            os._exit(TRY_AGAIN)

    @contextmanager
    def _only_good_ones(self, sender: int) -> Iterator[None]:
        """Refuse a message that no rank of this version sends; say so once."""
        try:
            yield
        except BadMessage as error:
            if not self._told_of_bad_messages:
                self._told_of_bad_messages = True
                text = "rank %d refused a message of rank %d that it cannot read (%s): do both run "
                log.warning(text + "the same version?", self.rank, sender, error)


def _explained(text: str, kind: type[ExchangeTimeout] = ExchangeTimeout) -> ExchangeTimeout:
    """Return the end of a wait whose reason is known."""
    error = kind(text)
    error.is_explained = True
    return error

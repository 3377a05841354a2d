"""Who holds up whom, from what the ranks tell of themselves: no clock, no sockets, no threads.

A rank that others wait for, and that waits for nobody, is missing. Whether it stands still decides
how long it may take: one that is at work, as in an evaluation that only rank 0 makes, gets more.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from horovod_detox.watch.beats import GONE, RUNNING, STOPPED, Beat, Finding, Waiting
from horovod_detox.watch.known import Known
from horovod_detox.watch.words import shown, who

FIRST_WORD = 10.0
"""Seconds that others wait for a rank, at least, until this is said."""
STEPS = 5
"""So many steps they wait, too, until then."""
GROWTH = 2.0
"""It is said again when they have waited so many times longer."""
PATIENCE = 3.0
"""A rank that is at work may take so many times longer than one that stands still."""
SURE = 1.2
"""Seconds that a rank was missing, each time it was looked, until it is taken to be."""
FAREWELL = 5.0
"""Seconds from the farewell of a rank until waits for it are ended: Horovod ends them at once, and
those that it has completed may take a while to return."""
GRACE = 1.0
"""Seconds from the end of a connection until the rank is taken to be gone."""
JOIN = "hvd.join"
"""What ranks wait in that have no more data, while the others go on."""
MOST_NAMED = 4


class Judge:
    """Keeps what the ranks tell, and finds out who is missing.

    Args:
        hosts: of the ranks.
        timeout: for so many seconds may others wait for a rank that stands still.
        now: the time, in seconds from anywhere.

    Attributes:
        timeout: likewise.
        machines: of the ranks, each of which can see those on its own; by default the hosts.
    """

    def __init__(self, hosts: Sequence[str], timeout: float, now: float) -> None:
        self.timeout = timeout
        self._hosts = self.machines = tuple(hosts)
        self._ranks = [Known(Beat(), now) for _ in hosts]
        self._began: float | None = now
        self._told_of: set[int] = set()
        self._missing: dict[tuple[str, int], float] = {}
        self._next_word: dict[tuple[str, int], float] = {}
        self._ended: set[str] = set()

    def hear(self, rank: int, beat: Beat, now: float) -> None:
        """Take down what a rank tells.

        Args:
            rank: who tells it.
            beat: what.
            now: when it came.
        """
        known = self._ranks[rank]
        known.beat, known.at, known.is_heard = beat, now, True
        if known.cut_at is not None and now > known.cut_at:
            known.cut_at = None
        if beat.left and not known.left:
            known.left = f"has left after {beat.step} exchanges: {beat.left}"
        for other, seen in beat.seen.items():
            if other < len(self._ranks) and self.machines[other] == self.machines[rank]:
                self._ranks[other].seen, self._ranks[other].seen_at = seen, now
                if seen.state == GONE:
                    self._lose(self._ranks[other], seen.hint)

    def cut(self, rank: int, now: float) -> None:
        """Note that the connection to a rank has ended: it is gone, if it does not come back."""
        self._ranks[rank].cut_at = now

    def is_watchful(self) -> bool:
        """Return whether to look again though nobody waits: for ranks that are back, or unheard."""
        return self._began is not None or bool(self._missing) or self._any_cut()

    def _any_cut(self) -> bool:
        return any(known.cut_at is not None for known in self._ranks)

    def is_away(self, rank: int, now: float) -> bool:
        """Return whether a rank has left, or has not told anything for some time."""
        return bool(self._ranks[rank].left) or self._ranks[rank].is_silent(now)

    def _lose(self, known: Known, hint: str = "") -> None:
        if not known.left:
            known.is_gone = True
            place = f" {known.beat.place}," if known.beat.place else ""
            known.left = (
                f"is gone without a word{f' ({hint})' if hint else ''}, last seen{place} after "
                f"{known.beat.step} exchanges"
            )

    def look(self, now: float) -> list[Finding]:
        """Return what has changed since the last time."""
        for known in self._ranks:
            if known.cut_at is not None and now - known.cut_at > GRACE:
                self._lose(known)
        waits = self._waits(now)
        missing = {(what, rank): now for what in waits for rank in self._roots(what, waits)}
        self._missing = {key: self._missing.get(key, now) for key in missing}
        self._next_word = {key: self._next_word.get(key, 0.0) for key in missing}
        found = [*self._departures(now), *self._unheard(now)]
        self._ended &= waits.keys()
        # The longest first: who ends it ends others, too, before these lose their connections.
        over: set[int] = set()
        for what in sorted(waits.keys() - self._ended, key=lambda each: -_longest(waits[each])):
            roots = {rank for where, rank in missing if where == what}
            if all(self._is_sure(what, rank, now) for rank in roots):
                judged = [*self._judge(what, roots, waits, now, over)]
                over |= {rank for finding in judged if finding.ends for rank in finding.missing}
                found += judged
        self._ended |= {finding.ends for finding in found if finding.ends}
        return [*found, *self._returns({rank for _, rank in missing}, now)]

    def _is_sure(self, what: str, rank: int, now: float) -> bool:
        """Return whether a rank is missing, and not only heard at another time than others."""
        known = self._ranks[rank]
        least = FAREWELL if known.left and not known.is_gone else SURE
        return now - self._missing[what, rank] >= least

    def _departures(self, now: float) -> Iterable[Finding]:
        """Yield who has left since the last time, and whom they may have lost."""
        for rank, known in enumerate(self._ranks):
            if known.left and rank not in self._told_of:
                self._told_of.add(rank)
                if silence := self.silence(range(len(self._ranks)), now):
                    known.left += f"; {silence}"
                yield Finding(self._departure(rank), left=rank)

    def _unheard(self, now: float) -> Iterable[Finding]:
        """Say once who was never heard: of these ranks nothing is known, and nothing is said."""
        if self._began is None or now - self._began < FIRST_WORD:
            return
        self._began = None
        if ranks := [rank for rank, known in enumerate(self._ranks) if not known.is_known()]:
            yield Finding(
                f"nothing was ever heard from ranks {ranks}, so nobody can tell when they stop: "
                "open the ports between the hosts, or waits for them end late"
            )

    def _waits(self, now: float) -> dict[str, dict[int, Waiting]]:
        """Return who waits where, of the ranks that answer; with how long by now."""
        waits: dict[str, dict[int, Waiting]] = {}
        for rank, known in enumerate(self._ranks):
            waiting = known.beat.waiting
            stopped = (seen := known.seen_now(now)) is not None and seen.state == STOPPED
            if waiting is None or known.left or known.is_silent(now) or stopped:
                continue
            by_now = replace(waiting, seconds=waiting.seconds + now - known.at)
            waits.setdefault(waiting.what, {})[rank] = by_now
        return waits

    def _lacking(self, what: str, waits: Mapping[str, Mapping[int, Waiting]]) -> set[int]:
        """Return who should be in a wait and is not."""
        there = waits[what]
        wanted = next(iter(there.values())).ranks or range(len(self._ranks))
        joined = waits.get(JOIN, {})
        return {
            rank
            for rank in wanted
            if rank not in there and rank not in joined
            if rank < len(self._ranks) and self._ranks[rank].is_known()
        }

    def _roots(self, what: str, waits: Mapping[str, Mapping[int, Waiting]]) -> set[int]:
        """Return who is missing there: ranks that do not wait themselves.

        Where a lacking rank waits for others, these are; if nobody is, those that may not wait.
        """
        place_of = {rank: where for where, there in waits.items() for rank in there}
        roots, possible, to_do, seen = set(), set(), [what], set()
        while to_do:
            if (where := to_do.pop()) in seen:
                continue
            seen.add(where)
            for rank in self._lacking(where, waits):
                if rank in place_of:
                    to_do.append(place_of[rank])
                    possible |= {rank} if waits[to_do[-1]][rank].is_possible else set()
                else:
                    roots.add(rank)
        return roots or possible - waits[what].keys()

    def _judge(
        self,
        what: str,
        roots: set[int],
        waits: Mapping[str, Mapping[int, Waiting]],
        now: float,
        over: Collection[int] = (),
    ) -> Iterable[Finding]:
        there = waits[what]
        waited = _longest(there)
        if not roots:
            waits = {where: its for where, its in waits.items() if not _is_possible(its)}
            yield from self._judge_circle(what, waits, waited) if what in waits else ()
            return
        roots = self._culprits(roots, now)
        left = {rank for rank in roots if self._ranks[rank].left}
        if left and _is_possible(there):  # Horovod ends it, if it is one
            return
        still = max(self._ranks[rank].still(now) for rank in roots)
        at_work = still < self.timeout
        limit = self.timeout * (PATIENCE if at_work else 1)
        if left:
            text = "; ".join(self._departure(rank) for rank in sorted(left))
            text += f"; {who(there)} for it in {shown(what)}"
            yield Finding(text, ends=what, missing=tuple(sorted(left)))
        elif at_work and what == JOIN:
            return
        elif waited >= limit or roots & {*over}:
            for rank in roots:
                self._ranks[rank].is_said = False
            yield Finding(
                f"{self._stall(roots, now)}; {who(there, waited)} in {shown(what)}. "
                f"{self._limit(at_work)}",
                ends=what,
                missing=tuple(sorted(roots)),
            )
        else:
            yield from self._say(what, roots, there, waited, now)

    def _culprits(self, roots: set[int], now: float) -> set[int]:
        """Return who is missing for a reason of its own: a stopped rank has others not answer.

        They may be in a function of Horovod, with Python's interpreter lock.
        """
        seen = {rank: self._ranks[rank].seen_now(now) for rank in roots}
        stopped = {rank for rank, its in seen.items() if its is not None and its.state == STOPPED}
        silent = {rank for rank in roots if self._ranks[rank].is_silent(now)}
        return roots - (silent - stopped) if stopped else roots

    def _say(
        self, what: str, roots: set[int], there: Mapping[int, Waiting], waited: float, now: float
    ) -> Iterable[Finding]:
        """Say who is waited for, if it is time to."""
        steps = max(self._ranks[rank].beat.median for rank in there)
        due = max(FIRST_WORD, STEPS * steps)
        if any(waited > (self._next_word[what, rank] or due) for rank in roots):
            for rank in roots:
                self._next_word[what, rank] = GROWTH * waited
                self._ranks[rank].is_said = True
            place = f"{who(there, waited)} in {shown(what)}"
            yield Finding(f"{self._stall(roots, now)}; {place}")

    def _limit(self, at_work: bool) -> str:
        """Say which limit is over, and how to change it."""
        setting = f"Detox(timeout={self.timeout:g})"
        if at_work:
            setting = f"{PATIENCE:g} x {setting}, as it is at work"
        return f"The limit is {setting}: set a longer one if the script needs it"

    def _judge_circle(
        self, what: str, waits: Mapping[str, Mapping[int, Waiting]], waited: float
    ) -> Iterable[Finding]:
        """End a wait of ranks that others wait for in another: that of most, or the longest.

        The others can go on, if they do not wait for ranks that end by it.
        """
        lacking = self._lacking(what, waits)
        if not lacking:
            yield from self._judge_unfinished(what, waits[what], waited)
        if not lacking or JOIN in waits or waited < self.timeout:
            return
        largest = max(waits, key=lambda each: (len(waits[each]), _longest(waits[each])))
        if what != largest:
            return
        places = "; ".join(
            f"{who(there)} in {shown(where)}{self._at(there)}"
            for where, there in sorted(waits.items())
        )
        yield Finding(
            f"ranks have been waiting for each other in different places for {waited:.0f} s: "
            f"{places}. They took different paths through the script: have all ranks call the same "
            "collectives in the same order",
            ends=what,
            missing=tuple(sorted(lacking)),
        )

    def _judge_unfinished(
        self, what: str, there: Iterable[int], waited: float
    ) -> Iterable[Finding]:
        """End a wait in which all are, and which nobody completes."""
        all_known = all(known.is_known() for known in self._ranks)
        if all_known and waited >= PATIENCE * self.timeout:
            yield Finding(
                f"{who(there, waited)} in {shown(what)}, and no rank is missing: Horovod or the "
                f"network does not complete it. The limit is {PATIENCE:g} x "
                f"Detox(timeout={self.timeout:g}): look at the network between the hosts, or set a "
                "longer one if it takes so long",
                ends=what,
            )

    def _at(self, there: Iterable[int]) -> str:
        place = self._ranks[min(there)].beat.place
        return f", {place}" if place else ""

    def _returns(self, missing: set[int], now: float) -> Iterable[Finding]:
        """Say who is back of those that were said to be missing."""
        for rank, known in enumerate(self._ranks):
            if known.is_said and rank not in missing and not known.left:
                known.is_said = False
                if not known.is_silent(now):
                    yield Finding(f"{self._name(rank)} is back")

    def silence(self, ranks: Iterable[int], now: float) -> str:
        """Say which of some ranks do not answer, though they have not left; "": all do."""
        known = {rank: self._ranks[rank] for rank in ranks}
        silent = {rank for rank, its in known.items() if its.is_heard and its.is_silent(now)}
        return self._stall({rank for rank in silent if not known[rank].left}, now)

    def _stall(self, ranks: set[int], now: float) -> str:
        """Say what missing ranks do."""
        named = [self._doing(rank, now) for rank in sorted(ranks)[:MOST_NAMED]]
        if more := len(ranks) - MOST_NAMED:
            named += [f"{more} more ranks"] if more > 0 else []
        return "; ".join(named)

    def _doing(self, rank: int, now: float) -> str:
        known, seen = self._ranks[rank], self._ranks[rank].seen_now(now)
        name, place = self._name(rank), known.beat.place
        last = f", last seen {place}" if place else ""
        if seen is not None and seen.state == STOPPED:
            return f"{name} has been stopped (SIGSTOP) for {known.still(now):.0f} s{last}"
        if known.is_silent(now):
            state = f" ({seen.state})" if seen is not None else ""
            if seen is not None and seen.state == RUNNING:
                state = " (running: a function holds Python's interpreter lock)"
            return f"{name} has not answered for {now - known.at:.0f} s{state}{last}"
        if (still := known.still(now)) < 1:
            return f"{name} is at work, {place}"
        return f"{name} has been {place} for {still:.0f} s"

    def _departure(self, rank: int) -> str:
        return f"{self._name(rank)} {self._ranks[rank].left}"

    def _name(self, rank: int) -> str:
        several = len(set(self._hosts)) > 1
        return f"rank {rank}" + (f" (host {self._hosts[rank]})" if several else "")


def _is_possible(there: Mapping[int, Waiting]) -> bool:
    return next(iter(there.values())).is_possible


def _longest(there: Mapping[int, Waiting]) -> float:
    return max(waiting.seconds for waiting in there.values())

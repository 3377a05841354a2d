"""What the ranks are told of faults: events, and the account of them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from horovod_detox.vote.lateness import Late
from horovod_detox.vote.work import Work, totals

DISSENT = "dissent"
ABSTENTION = "abstention"
NON_FINITE = "non_finite"
MISCALCULATION = "miscalculation"
DIVERGENCE = "divergence"
OUT_OF_STEP = "out_of_step"
RECEPTION = "reception"
SUSPICION = "suspicion"
DRIFT = "drift"
OF_RANKS = (MISCALCULATION, DIVERGENCE, OUT_OF_STEP, RECEPTION)
"""What a rank is named for beside its vote."""
KINDS = (DISSENT, ABSTENTION, NON_FINITE, *OF_RANKS, SUSPICION, DRIFT)
STATE = "state"
OF_RANDOM = "random"
DATA = "data"
COMPUTE = "compute"
DATA_OR_COMPUTE = "data or compute"
UNEXPLAINED = frozenset({COMPUTE, DATA_OR_COMPUTE})
"""The causes that count against a machine."""
MOST_NAMED = 3
"""So many things that differ are named in a line."""
_WHY = {
    OF_RANDOM: "it drew random numbers that others of its group did not, as an evaluation on one "
    "rank does",
    DATA: "it was given another batch than the others of its group",
    COMPUTE: "it computed another gradient of the same data with the same state",
    DATA_OR_COMPUTE: "it was given another batch, or computed another gradient of the same",
}


@dataclass(frozen=True)
class Cause:
    """Why a rank holds, or computes, something else than others.

    Attributes:
        kind: `state` (parameters, optimizer state or buffers differ), `random` (the states of
            random generators do), `data` (it was given another batch), `compute` (all of these are
            alike: hardware, or a lie), or `data or compute` (the batch is not known).
        what: the names of what differs.
        is_healed: whether it was given what most hold.
        files: that it has written since what it holds was last compared, as they are called now:
            they hold the wrong state, and their names were taken from them.
    """

    kind: str
    what: tuple[str, ...] = ()
    is_healed: bool = False
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Tell it as the end of a sentence about the rank."""
        if self.kind not in (STATE, OF_RANDOM):
            return _WHY[self.kind]
        more = len(self.what) - MOST_NAMED
        named = listed(self.what[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        done = "healed" if self.is_healed else "not healed"
        if self.kind == OF_RANDOM:
            return f"{_WHY[OF_RANDOM]} ({named}); {done}"
        files = f"; save again what holds that state: {listed(self.files)}" if self.files else ""
        return f"it held another state than most ({named}); {done}{files}"


@dataclass(frozen=True)
class Findings:
    """What a comparison of what ranks hold alike came to, the same on every rank.

    Attributes:
        causes: why ranks were outvoted, by rank.
        drifts: what else ranks held otherwise than most, by rank.
        undecided: the ranks that hold something differently, by what it is, of which no majority
            holds the same; nothing was done about it.
    """

    causes: Mapping[int, Cause] = field(default_factory=dict)
    drifts: Mapping[int, Cause] = field(default_factory=dict)
    undecided: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def odd(self) -> frozenset[int]:
        """Return the ranks that held another state than most, or drew other random numbers."""
        causes = {**self.causes, **self.drifts}
        kinds = (STATE, OF_RANDOM)
        return frozenset(rank for rank, cause in causes.items() if cause.kind in kinds)


NOTHING_FOUND = Findings()


@dataclass(frozen=True)
class Event:
    """One recorded fact.

    Attributes:
        step: number of the exchange, from 0.
        kind: `dissent` (the copies of `ranks` lost their group's vote), `abstention` (the group
            had no strict majority; `ranks`, its members, are suspects), `non_finite` (the group's
            vote held NaN or infinity and was excluded), `miscalculation` (what `ranks` of the group
            computed for all was not what most of the slice's witnesses computed), `divergence`
            (`ranks` held another update than most after the step before), `out_of_step` (since the
            last exchange, the optimizer of `ranks` has stepped more or less often than that of
            most ranks, so that they hold other weights), `reception` (`ranks`
            receive something else than others send), `suspicion` (the second of `ranks` says that
            what it received from the first does not match its fingerprint: one of the two is
            faulty), `drift` (`ranks` held another state than most ranks, or than most of their
            group).
        group: index of the group.
        ranks: the ranks concerned, ascending.
        hosts: the host of each of them; empty when all ranks of the job are on one.
        cause: of a new dissent or of a drift; None: not looked for.
    """

    step: int
    kind: str
    group: int
    ranks: tuple[int, ...]
    hosts: tuple[str, ...] = ()
    cause: Cause | None = None

    def __str__(self) -> str:
        """Tell the fact in one line."""
        ranks, members = listed(self.ranks), listed(self.ranks)
        if self.hosts:
            places = zip(self.ranks, self.hosts, strict=True)
            ranks = listed(f"{rank} (host {host})" for rank, host in places)
            members += f" on hosts {listed(dict.fromkeys(self.hosts))}"
        what = {
            DISSENT: f"group {self.group} outvoted rank {ranks}",
            ABSTENTION: f"group {self.group} had no majority and was left out (ranks {members})",
            NON_FINITE: f"group {self.group} voted a non-finite gradient (ranks {members})",
            MISCALCULATION: f"rank {ranks} computed a wrong part of the update",
            DIVERGENCE: f"rank {ranks} held another update than most ranks after the step before",
            OUT_OF_STEP: f"rank {ranks} has stepped more or less often than most ranks since the "
            "last exchange: it holds other weights",
            RECEPTION: f"rank {ranks} receives something else than others send",
            SUSPICION: f"one of ranks {ranks} is faulty: what the second received is not what the "
            "first has a fingerprint of",
            DRIFT: f"rank {ranks} drifted",
        }
        why = "" if self.cause is None or self.cause.kind in UNEXPLAINED else f": {self.cause}"
        return f"step {self.step}: {what[self.kind]}{why}"


@dataclass(frozen=True)
class FaultReport:
    """The account so far, the same on every rank.

    Attributes:
        steps: number of exchanges.
        skipped: how many of them had no update, so that no rank stepped.
        dissents: number of steps in which each rank dissented; honest ranks are absent.
        abstentions: number of steps in which each group abstained.
        non_finite: number of steps in which each group's vote was not finite.
        miscalculations: number of steps in which each rank computed a wrong part of the update;
            known with `Detox(witnesses=2)` or more.
        divergences: number of steps after which each rank held another update than most ranks.
        out_of_step: number of steps before which the optimizer of each rank had stepped more or
            less often than that of most ranks.
        receptions: number of steps in which each rank received something else than others sent.
        suspicions: number of steps in which each rank was one of two, one of which is faulty.
        drifts: number of steps in which each rank was found to hold another state than most.
        healed: how often each rank was given the state that most hold.
        causes: number of steps in which each rank dissented, by cause (see `Cause`); dissents
            whose cause was not looked for are absent.
        spans: the first and the last step of each fault, by kind (see `Event`) and rank or group.
        events: the latest facts (`KEPT_EVENTS` at most), oldest first.
        hosts: the host of every rank; empty when they are not known.
        optimizers: what every optimizer has done, as this rank counts it, in the order in which
            they were wrapped.
        late: the ranks that others waited for, how often and how long: slow, which is no fault.
    """

    steps: int = 0
    skipped: int = 0
    dissents: dict[int, int] = field(default_factory=dict)
    abstentions: dict[int, int] = field(default_factory=dict)
    non_finite: dict[int, int] = field(default_factory=dict)
    miscalculations: dict[int, int] = field(default_factory=dict)
    divergences: dict[int, int] = field(default_factory=dict)
    out_of_step: dict[int, int] = field(default_factory=dict)
    receptions: dict[int, int] = field(default_factory=dict)
    suspicions: dict[int, int] = field(default_factory=dict)
    drifts: dict[int, int] = field(default_factory=dict)
    healed: dict[int, int] = field(default_factory=dict)
    causes: dict[int, dict[str, int]] = field(default_factory=dict)
    spans: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    hosts: dict[int, str] = field(default_factory=dict)
    optimizers: tuple[Work, ...] = ()
    late: dict[int, Late] = field(default_factory=dict, compare=False)

    @property
    def hosts_at_fault(self) -> dict[str, tuple[int, ...]]:
        """Return the ranks that were ever named for what a machine may do, by host.

        A dissent that has another cause does not count against it.
        """
        explained = {
            rank
            for rank, causes in self.causes.items()
            if not causes.keys() & UNEXPLAINED and sum(causes.values()) == self.dissents.get(rank)
        }
        named = [
            self.dissents.keys() - explained,
            self.miscalculations,
            self.divergences,
            self.out_of_step,
            self.receptions,
        ]
        return _by_host(sorted(set().union(*named)), self.hosts)

    def __str__(self) -> str:
        """Tell the account in one line."""
        found = [f"{who} dissented in {n}" for who, n in self._culprits(self.dissents)]
        found += [f"group {group} abstained in {n}" for group, n in self.abstentions.items()]
        found += [f"group {group} was not finite in {n}" for group, n in self.non_finite.items()]
        found += [f"{who} miscalculated in {n}" for who, n in self._culprits(self.miscalculations)]
        found += [f"{who} diverged in {n}" for who, n in self._culprits(self.divergences)]
        found += [f"{who} was out of step in {n}" for who, n in self._culprits(self.out_of_step)]
        found += [f"{who} received wrong data in {n}" for who, n in self._culprits(self.receptions)]
        found += [f"{who} drifted in {n}" for who, n in self._culprits(self.drifts)]
        found += [f"{who} was suspected in {n}" for who, n in self._culprits(self.suspicions)]
        skipped = f", {self.skipped} of them skipped" if self.skipped else ""
        said = f"{', '.join(found) or 'no fault in any'} of {self.steps} steps{skipped}"
        return "; ".join([said, *map(str, totals(self.optimizers))])

    def to_json(self) -> str:
        """Serialise the report, events included."""
        return json.dumps(asdict(self))

    def _culprits(self, totals: Mapping[int, int]) -> Iterator[tuple[str, str]]:
        """Yield who is at fault, and in how many steps: ranks, or a host of which all ranks are."""
        everyone = _by_host(self.hosts, self.hosts)
        if len(everyone) < 2:
            yield from ((f"rank {rank}", str(n)) for rank, n in totals.items())
            return
        for host, ranks in _by_host(totals, self.hosts).items():
            if len(ranks) > 1 and ranks == everyone[host]:
                least, most = min(totals[r] for r in ranks), max(totals[r] for r in ranks)
                n = str(most) if least == most else f"{least} to {most}"
                yield f"host {host} (ranks {listed(ranks)})", n
            else:
                yield from ((f"rank {rank} (host {host})", str(totals[rank])) for rank in ranks)


def _by_host(ranks: Iterable[int], hosts: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Sort ranks by their hosts, as far as these are known."""
    ranks_of: dict[str, tuple[int, ...]] = {}
    for rank in ranks:
        if host := hosts.get(rank):
            ranks_of[host] = (*ranks_of.get(host, ()), rank)
    return ranks_of


def listed(things: Iterable[object]) -> str:
    """Return things as a list in a sentence."""
    return ", ".join(map(str, things))

"""The fault ledger: which rank dissented, which group abstained, when."""

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from horovod_detox.groups import Groups
from horovod_detox.vote import Verdict

DISSENT = "dissent"
ABSTENTION = "abstention"
NON_FINITE = "non_finite"
MISCALCULATION = "miscalculation"
KINDS = (DISSENT, ABSTENTION, NON_FINITE, MISCALCULATION)
KEPT_EVENTS = 10_000

log = logging.getLogger("horovod_detox")


@dataclass(frozen=True)
class Event:
    """One recorded fact.

    Attributes:
        step: number of the exchange, from 0.
        kind: `dissent` (the copies of `ranks` lost their group's vote), `abstention` (the group
            had no strict majority; `ranks`, its members, are suspects), `non_finite` (the group's
            vote held NaN or infinity and was excluded), `miscalculation` (what `ranks` of the group
            computed for all was not what most of the slice's witnesses computed).
        group: index of the group.
        ranks: the ranks concerned, ascending.
    """

    step: int
    kind: str
    group: int
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        """Tell the fact in one line."""
        ranks = ", ".join(map(str, self.ranks))
        what = {
            DISSENT: f"group {self.group} outvoted rank {ranks}",
            ABSTENTION: f"group {self.group} had no majority and was left out (ranks {ranks})",
            NON_FINITE: f"group {self.group} voted a non-finite gradient (ranks {ranks})",
            MISCALCULATION: f"rank {ranks} computed a wrong part of the update",
        }
        return f"step {self.step}: {what[self.kind]}"


@dataclass(frozen=True)
class FaultReport:
    """The account so far, the same on every rank.

    Attributes:
        steps: number of exchanges.
        dissents: number of steps in which each rank dissented; honest ranks are absent.
        abstentions: number of steps in which each group abstained.
        non_finite: number of steps in which each group's vote was not finite.
        miscalculations: number of steps in which each rank computed a wrong part of the update;
            known with `Detox(witnesses=2)` or more.
        events: the latest facts (`KEPT_EVENTS` at most), oldest first.
    """

    steps: int = 0
    dissents: dict[int, int] = field(default_factory=dict)
    abstentions: dict[int, int] = field(default_factory=dict)
    non_finite: dict[int, int] = field(default_factory=dict)
    miscalculations: dict[int, int] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        """Tell the account in one line."""
        found = [f"rank {rank} dissented in {n}" for rank, n in self.dissents.items()]
        found += [f"group {group} abstained in {n}" for group, n in self.abstentions.items()]
        found += [f"group {group} was not finite in {n}" for group, n in self.non_finite.items()]
        found += [f"rank {rank} miscalculated in {n}" for rank, n in self.miscalculations.items()]
        return f"{', '.join(found) or 'no fault in any'} of {self.steps} steps"

    def to_json(self) -> str:
        """Serialise the report, events included."""
        return json.dumps(asdict(self))


class Ledger:
    """Append-only account of the verdicts among some ranks of a job.

    Args:
        groups: the groups of the ranks, counted from 0.
        ranks: the names under which they are reported; None: as they are counted.
        logs: whether to log the first fault of every rank and group.
    """

    def __init__(
        self, groups: Groups, ranks: Sequence[int] | None = None, logs: bool = True
    ) -> None:
        self._logs = logs
        self._groups = groups
        self._ranks = ranks or range(groups.world_size)
        self._members = [self._named(members) for members in groups.members]
        self._steps = 0
        self._totals = {kind: Counter() for kind in KINDS}
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._callbacks: list[Callable[[Event], None]] = []

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Call `callback(event)` for every event from now on."""
        self._callbacks.append(callback)

    def record(
        self,
        step: int,
        verdict: Verdict,
        non_finite: tuple[int, ...] = (),
        miscalculators: tuple[int, ...] = (),
    ) -> None:
        """Enter the verdict of a step, the groups of non-finite votes, and who miscalculated."""
        self._steps += 1
        for group, vote in enumerate(verdict.votes):
            if vote.winners is None:
                self._enter(Event(step, ABSTENTION, group, self._members[group]), group)
            if vote.dissenters:
                dissenters = self._named(vote.dissenters)
                self._enter(Event(step, DISSENT, group, dissenters), *dissenters)
        for group in non_finite:
            self._enter(Event(step, NON_FINITE, group, self._members[group]), group)
        for rank in miscalculators:
            (name,) = self._named([rank])
            self._enter(Event(step, MISCALCULATION, self._groups.of(rank), (name,)), name)

    def report(self) -> FaultReport:
        """Return the account so far."""
        totals = {kind: dict(sorted(count.items())) for kind, count in self._totals.items()}
        return FaultReport(
            steps=self._steps,
            dissents=totals[DISSENT],
            abstentions=totals[ABSTENTION],
            non_finite=totals[NON_FINITE],
            miscalculations=totals[MISCALCULATION],
            events=tuple(self._events),
        )

    def _named(self, ranks: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._ranks[rank] for rank in ranks)

    def _enter(self, event: Event, *culprits: int) -> None:
        """Append an event and count it for each culprit: ranks, or the group."""
        totals = self._totals[event.kind]
        if self._logs and not all(totals[culprit] for culprit in culprits):
            log.warning("%s", event)
        totals.update(culprits)
        self._events.append(event)
        for callback in self._callbacks:
            callback(event)

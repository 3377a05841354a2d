"""The fault ledger: which rank dissented, which group abstained, when."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from horovod_detox.vote.groups import Groups
from horovod_detox.vote.lateness import Lateness
from horovod_detox.vote.majority import Verdict
from horovod_detox.vote.report import (
    ABSTENTION,
    DISSENT,
    DIVERGENCE,
    DRIFT,
    KINDS,
    MISCALCULATION,
    NON_FINITE,
    NOTHING_FOUND,
    OF_RANKS,
    OUT_OF_STEP,
    RECEPTION,
    SUSPICION,
    UNEXPLAINED,
    Cause,
    Event,
    FaultReport,
    Findings,
    listed,
)
from horovod_detox.vote.suspicion import Pair
from horovod_detox.vote.work import Tally

KEPT_EVENTS = 10_000
_POWERS = frozenset(10**n for n in range(1, 19))
"""After so many steps a fault is told again."""
QUIET = 10
"""A fault is over when so many exchanges went well."""
_VERBS = {
    DISSENT: "dissented",
    ABSTENTION: "abstained",
    NON_FINITE: "was not finite",
    MISCALCULATION: "miscalculated",
    DIVERGENCE: "diverged",
    OUT_OF_STEP: "was out of step",
    RECEPTION: "received wrong data",
    SUSPICION: "was suspected",
    DRIFT: "drifted",
}

log = logging.getLogger("horovod_detox")


@dataclass
class _Fault:
    """How often something was found, and when.

    Attributes:
        first, last: its first and its last step.
        count: in how many steps.
        exchanges: how many exchanges there had been, of all optimizers, when it was last found.
        is_said: whether it was told and is not over.
    """

    first: int
    last: int = 0
    count: int = 0
    exchanges: int = 0
    is_said: bool = False

    def __str__(self) -> str:
        """Tell how often and when."""
        if self.count == 1:
            return f"in step {self.first}"
        return f"in {self.count} steps, {self.first} to {self.last}"


class Ledger:
    """Append-only account of the verdicts among some ranks of a job.

    Args:
        groups: the groups of the ranks, counted from 0.
        ranks: the names under which they are reported; None: as they are counted.
        logs: whether to log the first fault of every rank and group of a kind, and those after 10,
            100, 1000 and so on, and when it was over.
        hosts: of the ranks, as they are counted; None: not known.
    """

    def __init__(
        self,
        groups: Groups,
        ranks: Sequence[int] | None = None,
        logs: bool = True,
        hosts: Sequence[str] | None = None,
    ) -> None:
        self._logs = logs
        self._groups = groups
        self._ranks = ranks or range(groups.world_size)
        self._hosts = dict(zip(self._ranks, hosts, strict=True)) if hosts else {}
        self._members = [self._named(members) for members in groups.members]
        self._steps = self._skipped = 0
        self._tallies: list[Tally] = []
        self._former = 0  # so many optimizers were there when the account began anew
        self._faults: dict[str, dict[int, _Fault]] = {kind: {} for kind in KINDS}
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._untold: list[Event] = []
        self._callbacks: list[Callable[[Event], None]] = []
        self._lateness = Lateness(groups.world_size)
        self._causes: dict[int, Cause] = {}
        self._unexplained: Counter[int] = Counter()  # steps in a row that a rank has dissented in
        self._counts: dict[int, Counter[str]] = {}
        self._healed: Counter[int] = Counter()

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Call `callback(event)` for every event from now on; its errors are logged."""
        self._callbacks.append(callback)

    def begin_anew(self) -> None:
        """Forget what was found so far, and the optimizers that did it until they go on."""
        self._steps = self._skipped = 0
        self._faults = {kind: {} for kind in KINDS}
        self._events.clear()
        self._causes, self._counts, self._healed = {}, {}, Counter()
        self._unexplained.clear()
        self._lateness = Lateness(self._groups.world_size)
        for tally in self._tallies:
            tally.begin_anew()
        self._former = len(self._tallies)

    def account_for(self, tally: Tally) -> None:
        """Have the reports tell what an optimizer has done and will do."""
        self._tallies.append(tally)

    def note_waits(self, waited: np.ndarray) -> None:
        """Note how many seconds each rank waited in an exchange; empty: that is not known."""
        if len(waited):
            self._lateness.note(waited)

    def record(
        self,
        step: int,
        verdict: Verdict,
        non_finite: tuple[int, ...] = (),
        named: Mapping[str, Sequence[int]] = MappingProxyType({}),
        suspects: Iterable[Pair] = (),
        findings: Findings = NOTHING_FOUND,
    ) -> None:
        """Enter the verdict of a step and what else was found.

        Args:
            step: its number.
            verdict: the votes.
            non_finite: the groups whose vote was not finite.
            named: the ranks at fault otherwise than by their vote, by kind.
            suspects: pairs of ranks of which one is faulty.
            findings: what was found of what ranks hold alike.
        """
        self._steps += 1
        self._note_causes(verdict, findings)
        for group, vote in enumerate(verdict.votes):
            if vote.winners is None and not vote.has_joined:
                self._enter(step, ABSTENTION, group, self._members[group], [group])
            if vote.dissenters:
                for cause, ranks in _by_cause(vote.dissenters, findings.causes):
                    dissenters = self._named(ranks)
                    self._enter(step, DISSENT, group, dissenters, dissenters, cause)
        for group in non_finite:
            self._enter(step, NON_FINITE, group, self._members[group], [group])
        for kind in OF_RANKS:
            for rank in named.get(kind, ()):
                culprit = self._named([rank])
                self._enter(step, kind, self._groups.of(rank), culprit, culprit)
        for pair in sorted(suspects):
            ranks = self._named(pair)
            self._enter(step, SUSPICION, self._groups.of(pair[0]), ranks, ranks)
        self._enter_findings(step, findings)
        if self._logs:
            self._tell_what_is_over(step)
        self._tell()

    def note(self, step: int, findings: Findings) -> None:
        """Enter what was found between two steps.

        Args:
            step: the number of either.
            findings: of what ranks hold alike.
        """
        self._note_healed(findings)
        for rank in findings.drifts:  # what it dissented for is over
            self._causes.pop(rank, None)
        self._enter_findings(step, findings)
        self._tell()

    def explain(self, steps: Mapping[int, int], causes: Mapping[int, Cause]) -> None:
        """Say why ranks dissented in steps that were recorded without it.

        Args:
            steps: in which each of them began to, by rank.
            causes: why, by rank.
        """
        for rank, cause in causes.items():
            step, name = steps[rank], self._named([rank])
            since = [e for e in self._events if e.kind == DISSENT and e.step >= step]
            dissents = sum(name[0] in event.ranks for event in since)
            dissents = max(dissents, self._unexplained.pop(rank, 0))
            self._counts.setdefault(rank, Counter())[cause.kind] += dissents
            self._healed[rank] += cause.is_healed
            self._causes[rank] = cause
            for i, event in enumerate(self._events):
                if event in since and event.step == step and event.ranks == name:
                    self._events[i] = replace(event, cause=cause)
                    if self._logs and cause.kind not in UNEXPLAINED:
                        log.warning("%s", self._events[i])

    def _enter_findings(self, step: int, findings: Findings) -> None:
        for rank, cause in findings.drifts.items():
            culprit = self._named([rank])
            self._enter(step, DRIFT, self._groups.of(rank), culprit, culprit, cause)
        for what, ranks in findings.undecided.items():
            if self._logs:
                log.warning(
                    "step %d: ranks %s hold different values of %s, and no value has a majority: "
                    "nobody can tell which is right, so nothing was changed",
                    step,
                    listed(self._named(ranks)),
                    what,
                )

    def _note_causes(self, verdict: Verdict, findings: Findings) -> None:
        """Count by cause who dissents; a dissent that lasts has the cause that it began with."""
        lasting = {r: c for r, c in self._causes.items() if r in verdict.dissenters}
        self._causes = {**lasting, **findings.causes}
        unexplained, self._unexplained = self._unexplained, Counter()
        for rank in verdict.dissenters:
            steps = unexplained[rank] + 1
            if cause := self._causes.get(rank):
                self._counts.setdefault(rank, Counter())[cause.kind] += steps
            else:
                self._unexplained[rank] = steps
        self._note_healed(findings)

    def _note_healed(self, findings: Findings) -> None:
        for rank, cause in (*findings.causes.items(), *findings.drifts.items()):
            self._healed[rank] += cause.is_healed

    def skip(self, warning: str) -> None:
        """Note that the step which was recorded last had no update; warn of the first."""
        if self._logs and not self._skipped:
            log.warning("%s", warning)
        self._skipped += 1

    def report(self) -> FaultReport:
        """Return the account so far."""
        faults = {kind: dict(sorted(found.items())) for kind, found in self._faults.items()}
        counts = {kind: {w: f.count for w, f in found.items()} for kind, found in faults.items()}
        return FaultReport(
            steps=self._steps,
            skipped=self._skipped,
            dissents=counts[DISSENT],
            abstentions=counts[ABSTENTION],
            non_finite=counts[NON_FINITE],
            miscalculations=counts[MISCALCULATION],
            divergences=counts[DIVERGENCE],
            out_of_step=counts[OUT_OF_STEP],
            receptions=counts[RECEPTION],
            suspicions=counts[SUSPICION],
            drifts=counts[DRIFT],
            healed={self._ranks[rank]: n for rank, n in sorted(self._healed.items()) if n},
            causes={self._ranks[rank]: dict(n) for rank, n in sorted(self._counts.items())},
            spans={
                kind: {who: (fault.first, fault.last) for who, fault in found.items()}
                for kind, found in faults.items()
                if found
            },
            events=tuple(self._events),
            hosts=dict(self._hosts),
            late={self._ranks[rank]: late for rank, late in self._lateness.ranks().items()},
            optimizers=tuple(
                work
                for i, work in enumerate(tally.work() for tally in self._tallies)
                if work.exchanges or i >= self._former
            ),
        )

    def _named(self, ranks: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._ranks[rank] for rank in ranks)

    def _enter(
        self,
        step: int,
        kind: str,
        group: int,
        ranks: tuple[int, ...],
        culprits: Sequence[int],
        cause: Cause | None = None,
    ) -> None:
        """Append an event and count it for each culprit: ranks, or the group."""
        several = len(set(self._hosts.values())) > 1
        hosts = tuple(self._hosts[rank] for rank in ranks) if several else ()
        event = Event(step, kind, group, ranks, hosts, cause)
        is_new = False
        for culprit in culprits:
            fault = self._faults[kind].setdefault(culprit, _Fault(step))
            fault.last, fault.exchanges = step, self._steps
            fault.count += 1
            is_new |= fault.count == 1
            if self._logs and fault.count in _POWERS:
                log.warning("step %d: %s %s", step, self._who(kind, culprit), str(fault))
            fault.is_said |= fault.count in _POWERS or fault.count == 1
        is_explained = cause is not None and cause.kind not in UNEXPLAINED
        if self._logs and (is_new or is_explained):
            log.warning("%s", event)
        self._events.append(event)
        self._untold.append(event)

    def _tell(self) -> None:
        """Call back with the events of a step, when all of it is entered."""
        events, self._untold = self._untold, []
        for event in events:
            for callback in self._callbacks:
                try:
                    callback(event)
                except Exception:  # this rank goes on as all others do
                    log.exception(
                        "a callback of hvd.on_fault failed; training goes on. The fault was: %s",
                        event,
                    )

    def _tell_what_is_over(self, step: int) -> None:
        """Log which faults were told and were not found for some exchanges."""
        for kind, found in self._faults.items():
            for culprit, fault in found.items():
                if fault.is_said and self._steps - fault.exchanges >= QUIET:
                    fault.is_said = False
                    who = self._who(kind, culprit)
                    log.warning("step %d: not any more: %s %s", step, who, str(fault))

    def _who(self, kind: str, culprit: int) -> str:
        """Name a rank or a group, and what it did."""
        of_group = kind in (ABSTENTION, NON_FINITE)
        host = "" if of_group or len(set(self._hosts.values())) < 2 else self._hosts[culprit]
        name = f"{'group' if of_group else 'rank'} {culprit}"
        return f"{name}{f' (host {host})' if host else ''} {_VERBS[kind]}"


def _by_cause(
    dissenters: Sequence[int], causes: Mapping[int, Cause]
) -> list[tuple[Cause | None, list[int]]]:
    """Return the ranks that dissent for the same cause, together."""
    found: dict[Cause | None, list[int]] = {}
    for rank in dissenters:
        found.setdefault(causes.get(rank), []).append(rank)
    return list(found.items())

"""The check of a first exchange: are honest ranks about to be accused?

Beside the first copies of an optimizer travel the conditions of all ranks. When members of a group
hold different copies, the fingerprints of their parameters follow, and tell a faulty rank from a
job in which votes mean nothing.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Copy, to_numpy
from horovod_detox.arrays.nh import WORDS
from horovod_detox.determinism.conditions import Conditions, differing, table
from horovod_detox.determinism.verdict import (
    ADVICE,
    NONDETERMINISTIC,
    PreflightReport,
    judge_copies,
)
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import begin_to_share
from horovod_detox.exchange.step import NoMajority, Outcome
from horovod_detox.packing.layout import SIGN, Layout
from horovod_detox.vote.fingerprint import digest
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import Verdict

log = logging.getLogger("horovod_detox")


class NotDeterministic(NoMajority):
    """The members of a group do not compute the same bits, and not because of a fault.

    Attributes:
        report: what was found.
    """

    def __init__(self, report: PreflightReport, reason: str = "") -> None:
        conditions = report.table()
        lines = [
            f"{reason}. {report}" if reason else f"the votes would accuse honest ranks: {report}",
            conditions if "\n" in conditions else "The settings of all ranks are the same.",
            "What makes the ranks of a group compute the same bits:",
            ADVICE,
            "hvd.preflight(model, batch) and `horovod-detox doctor` tell more; "
            "Detox(preflight=False) trains regardless.",
        ]
        super().__init__("\n".join(lines))
        self.report = report


class FirstStep:
    """The check of one optimizer's first exchange, by all of its ranks.

    Args:
        groups: of the ranks.
        conditions: returns those of this process.
        ranks: what the ranks are called; None: as they are counted.
        is_drill: whether faults are wanted: then they are told, and nothing is refused.
        told: warnings that were given, by any optimizer; they are not given again.
    """

    def __init__(
        self,
        groups: Groups,
        conditions: Callable[[], Conditions],
        ranks: Sequence[int] | None = None,
        is_drill: bool = False,
        told: set[str] | None = None,
    ) -> None:
        self._groups = groups
        self._collect = conditions
        self._ranks = ranks
        self._is_drill = is_drill
        self._told = set() if told is None else told
        self._has_begun = False

    def begin(self, collectives: Collectives) -> None:
        """Let the conditions be on their way, beside the exchange, unless they are already."""
        if self._has_begun:
            return
        self._has_begun, self._collectives = True, collectives
        self._conditions = begin_to_share(
            collectives, "preflight.conditions", dict(self._collect())
        )

    def put_off(self) -> None:
        """Leave the check to a later exchange, as ranks have joined."""
        self._has_begun = False

    def explain(self, error: NoMajority, copy: Copy, layout: Layout) -> None:
        """Say why the exchange of a copy had no majority, if votes mean nothing in this job.

        Raises:
            NotDeterministic: on every rank, when they do not.
        """
        if not self._has_begun:
            return
        if self._is_drill:
            self._gathered()
            return
        report = self._compare(copy, layout, error.verdict or Verdict(()))
        if report.verdict == NONDETERMINISTIC:
            raise NotDeterministic(report, str(error)) from error
        self._tell(report)

    def check(self, outcome: Outcome, copy: Copy, layout: Layout) -> bool:
        """Check that the votes on a copy mean anything; return whether that was not put off.

        Raises:
            NotDeterministic: on every rank, when they do not.
        """
        if not self._has_begun:
            return False
        if not (outcome.verdict.dissenters or outcome.verdict.abstentions):
            self._warn(self._gathered())
            return True
        report = self._compare(copy, layout, outcome.verdict)
        if report.verdict == NONDETERMINISTIC and not self._is_drill:
            raise NotDeterministic(report)
        self._tell(report)
        return True

    def _tell(self, report: PreflightReport) -> None:
        """Log who is at fault."""
        if report.oddities and self._collectives.rank == 0:
            log.warning("first step: %s", report)

    def _gathered(self) -> Sequence[Conditions]:
        """Return the conditions of all ranks."""
        self._has_begun = False
        return self._conditions.wait()

    def _compare(self, copy: Copy, layout: Layout, verdict: Verdict) -> PreflightReport:
        """Gather the fingerprints of all parameters, which only a fault makes worth the while."""
        conditions = self._gathered()
        mine = fingerprint_parameters(copy, layout).ravel()
        gathered = self._collectives.allgather("preflight.parameters", mine).wait()
        fingerprints = gathered.reshape(len(conditions), -1, WORDS)
        names = [name for name, *_ in layout.parameters]
        return judge_copies(self._groups, names, fingerprints, conditions, verdict, self._ranks)

    def _warn(self, conditions: Sequence[Conditions]) -> None:
        """Warn of what differs inside groups though it has changed no bit yet."""
        names = {name for team in self._groups.members for name in differing(conditions, team)}
        if not names or self._collectives.rank != 0:
            return
        lines = table(conditions, sorted(names), self._ranks)
        if lines not in self._told:
            self._told.add(lines)
            log.warning(
                "settings that may change bits differ inside groups; so far all computed the same:"
                "\n%s",
                lines,
            )


def fingerprint_parameters(copy: Copy, layout: Layout) -> np.ndarray:
    """Digest the bits of every parameter in a copy: `(w,)` words -> `(parameters, 2)` of int64.

    Of signs, the words are digested in which a parameter's are; neighbours may share them.
    """
    buffers = layout.typed(copy)
    pieces = []
    for (segment, start, stop), span in zip(layout.places, layout.spans, strict=True):
        if layout.buffers.segments[segment].dtype == SIGN:
            pieces.append(copy[slice(*span)])
        else:
            pieces.append(buffers[segment][start:stop])
    return np.stack([digest(to_numpy(piece)) for piece in pieces])

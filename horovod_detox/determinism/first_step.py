"""The check of a first exchange: are honest ranks about to be accused?

Beside the first copies of an optimizer travel the conditions of all ranks. When members of a group
hold different copies, the fingerprints of their parameters follow, and tell a faulty rank from a
job in which votes mean nothing; a rank that was given other data is not called faulty. Where ranks
hold different weights, the check waits for the second exchange: scripts may broadcast them after
the first.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Copy, to_numpy
from horovod_detox.arrays.nh import WORDS
from horovod_detox.determinism.conditions import Conditions, differing, table
from horovod_detox.determinism.oddity import BATCH
from horovod_detox.determinism.verdict import (
    ADVICE,
    NONDETERMINISTIC,
    PreflightReport,
    judge_copies,
)
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.control import RanksDisagree
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
            "hvd.preflight(model, batch) and `horovod-detox doctor` tell more. "
            "Detox(preflight=False) trains without this check.",
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
        self._has_begun = self._has_waited = False

    def begin(
        self,
        collectives: Collectives,
        weights: Callable[[], str] = lambda: "",
        batch: Callable[[], np.ndarray | None] = lambda: None,
    ) -> None:
        """Let the conditions be on their way, beside the exchange, unless they are already.

        Args:
            collectives: of the ranks.
            weights: returns the digest of what this rank trains; "": not known.
            batch: returns the digest of what this rank was given; None: not known.
        """
        if self._has_begun:
            return
        self._has_begun, self._collectives = True, collectives
        given = batch()
        mine = {
            "conditions": dict(self._collect()),
            "weights": weights(),
            "batch": {} if given is None else {BATCH: given.tobytes().hex()[:8]},
        }
        self._facts = begin_to_share(collectives, "preflight.facts", mine)

    def put_off(self) -> None:
        """Leave the check to a later exchange, as ranks have joined."""
        self._has_begun = False

    def explain(self, error: NoMajority, copy: Copy, layout: Layout) -> bool:
        """Say why the exchange of a copy had no majority, if votes mean nothing in this job.

        Returns:
            whether it means nothing, as weights differ: the check waits for the next exchange.

        Raises:
            NotDeterministic: on every rank, when votes mean nothing.
            RanksDisagree: on every rank, when the weights differ in the second exchange, too.
        """
        if not self._has_begun:
            return False
        conditions = self._gathered()
        if self._waits_for_weights():
            return True
        if self._is_drill:
            return False
        report = self._compare(conditions, copy, layout, error.verdict or Verdict(()))
        if report.verdict == NONDETERMINISTIC:
            raise NotDeterministic(report, str(error)) from error
        self._tell(report)
        return False

    def check(self, outcome: Outcome, copy: Copy, layout: Layout) -> bool:
        """Check that the votes on a copy mean anything; return whether that was not put off.

        Raises:
            NotDeterministic, RanksDisagree: as `explain`.
        """
        if not self._has_begun:
            return False
        conditions = self._gathered()
        if self._waits_for_weights():
            return False
        if not (outcome.verdict.dissenters or outcome.verdict.abstentions):
            self._warn(conditions)
            return True
        report = self._compare(conditions, copy, layout, outcome.verdict)
        if report.verdict == NONDETERMINISTIC and not self._is_drill:
            raise NotDeterministic(report)
        self._tell(report)
        return True

    def _tell(self, report: PreflightReport) -> None:
        """Log who is at fault."""
        if report.oddities and self._collectives.rank == 0:
            log.warning("first step: %s", report)

    def _gathered(self) -> Sequence[Conditions]:
        """Return the conditions of all ranks, and know their weights."""
        self._has_begun = False
        facts = self._facts.wait()
        self._weights = [theirs["weights"] for theirs in facts]
        self._batches = [theirs["batch"] for theirs in facts]
        return [theirs["conditions"] for theirs in facts]

    def _waits_for_weights(self) -> bool:
        """Return whether no weights are those of most ranks, and this is the first exchange."""
        weights, count = Counter(self._weights).most_common(1)[0]
        names = self._ranks or range(len(self._weights))
        others = [name for name, its in zip(names, self._weights, strict=True) if its != weights]
        remedy = (
            "broadcast them before the first step: hvd.broadcast_parameters, broadcast_variables, "
            "or the callback BroadcastGlobalVariablesCallback"
        )
        if 2 * count > len(self._weights):
            if others and self._collectives.rank == 0:
                text = (
                    "first step: ranks %s have other weights than most. If they are not faulty, %s"
                )
                log.warning(text, others, remedy)
            return False
        if self._has_waited:
            raise RanksDisagree(
                f"the ranks still have different weights in the second step: {remedy}"
            )
        self._has_waited = True
        if self._collectives.rank == 0:
            log.warning(
                "first step: the ranks have different weights. If they still do in the second "
                "step, the job ends: %s",
                remedy,
            )
        return True

    def _compare(
        self, conditions: Sequence[Conditions], copy: Copy, layout: Layout, verdict: Verdict
    ) -> PreflightReport:
        """Gather the fingerprints of all parameters, which only a fault makes worth the while."""
        mine = fingerprint_parameters(copy, layout).ravel()
        gathered = self._collectives.allgather("preflight.parameters", mine).wait()
        fingerprints = gathered.reshape(len(conditions), -1, WORDS)
        names = [name for name, *_ in layout.parameters]
        given = [a | b for a, b in zip(conditions, self._batches, strict=True)]
        return judge_copies(self._groups, names, fingerprints, given, verdict, self._ranks)

    def _warn(self, conditions: Sequence[Conditions]) -> None:
        """Warn of what differs inside groups though it has changed no bit yet."""
        names = {name for team in self._groups.members for name in differing(conditions, team)}
        if not names or self._collectives.rank != 0:
            return
        lines = table(conditions, sorted(names), self._ranks)
        if lines not in self._told:
            self._told.add(lines)
            log.warning(
                "settings that may change results differ inside groups. So far all ranks "
                "computed the same bits; if they do not later, make these the same:\n%s",
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

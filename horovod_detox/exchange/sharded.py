"""The exchange in which no rank receives a whole foreign gradient.

The copies are cut into p slices; rank s owns slice s.

1. Send: every rank fingerprints its slices. It sends the fingerprints to all, and beside them, for
   each slice and each group, one sender sends that slice to its owner.
2. Vote: from the table of fingerprints every rank computes the same votes. Repair: where a sender
   lost, a member of the majority sends that slice again.
3. Check: every owner holds what it received against the fingerprint, and accuses the senders whose
   slice was not what they had fingerprinted. Aggregate: it reduces its columns; where a rule needs
   the Gram matrix, all ranks gather those of the blocks of their slices and add them up.
4. Share: every owner sends its slice of the update to all, and the accusations beside it. After an
   accusation, others send, and 3 and 4 are repeated.

With w witnesses, ranks of w other groups receive each slice, too, and do what its owner does: each
rank does 1 to 3 for the slice that it owns and those that it witnesses. Then

5. Confirm: from the fingerprints of all results, which are shared beside the slices, every rank
   learns which are those of most; a slice that arrived otherwise is sent again, by a witness, and
   its owner is named.

Parts of the copy go through these stages one after another, while later ones are still computed;
see `part.py`. A rule that needs the Gram matrix of all parts aggregates when it has those of all.
When a later part shows that the vote of a group does not count, the earlier ones are sent and
aggregated again.

So an exchange takes two messages of every rank to every other for each part, and one more for a
Gram matrix. A rank receives `(1 + w) k / p + 1` times the gradient, that is `(1 + w) / r + 1`;
allreduce: 2.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from horovod_detox.exchange.collectives import RanksJoined
from horovod_detox.exchange.cut import Part, cut
from horovod_detox.exchange.evidence import Deaf, Findings, Silenced
from horovod_detox.exchange.part import SentPart, VotedPart, conclude
from horovod_detox.exchange.step import NoMajority, Outcome, Step, rule_for
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import Verdict, merge
from horovod_detox.vote.report import MISCALCULATION, RECEPTION


def exchange(step: Step) -> Outcome:
    """Turn this rank's copy into the update that all ranks share."""
    parts = cut(len(step.copy), step.collectives.size, without=step.memory.unreliable)
    return Sharded(step, parts).finish(None if step.is_complete else lambda: None)


class Sharded:
    """An exchange under way: parts of the copy may be sent while others are not known yet.

    Args:
        step: what this rank brings.
        parts: of the copy.
        on_update: is called with the number of each part whose words of the update are there, more
            than once if they had to be computed again.

    Attributes:
        step: what this rank brings.
    """

    def __init__(
        self,
        step: Step,
        parts: Sequence[Part],
        on_update: Callable[[int], None] = lambda part: None,
    ) -> None:
        self.step, self._parts, self._on_update = step, parts, on_update
        self._sent: dict[int, SentPart] = {}
        self._voted: dict[int, VotedPart] = {}
        self._incomplete: set[int] = set()  # parts that some ranks cannot send yet
        self._joined: RanksJoined | None = None
        self._digests: dict[int, np.ndarray] = {}
        self._findings = Findings()
        self._without = step.memory.unreliable  # who own nothing

    def send(self, part: int, is_complete: bool = True) -> None:
        """Let the fingerprints and slices of a part be on their way; its words are final.

        Without all of its gradients, tell the others so.
        """
        if part not in self._sent:
            sent = SentPart(self.step, self._parts[part], self._findings, is_complete)
            self._sent[part] = sent

    def has_votes(self, parts: Collection[int]) -> bool:
        """Return whether these parts were sent by all ranks, and voted on."""
        return self._voted.keys() >= set(parts)

    def advance(self) -> None:
        """Go on with the parts that were sent, without waiting for another rank."""
        for part in sorted(self._sent.keys() - self._voted.keys() - self._incomplete):
            if self._sent[part].is_received():
                self._vote(part)
        for part, voted in self._voted.items():
            if voted.is_received():
                voted.receive()
                self._hand_on(part)

    def finish(self, complete: Callable[[], None] | None = None) -> Outcome:
        """Send what was not sent, wait for the other ranks and return the outcome.

        Args:
            complete: writes what this rank has of all other gradients into the copy, in which some
                are missing; None: none are.

        Raises:
            Postponed: on every rank, when too many have not all of their gradients. What was sent
                by all counts; the rest is to be finished later.
        """
        is_complete = complete is None
        while True:  # as often as there are ranks, at most
            for part in range(len(self._parts)):
                self.send(part, is_complete)
                self.advance()
            for part in range(len(self._parts)):
                self._vote(part)
                self.advance()
            if self._incomplete:
                self._recall()
                if self._joined is not None:
                    raise self._joined
                self.step.go_on()
                if complete is not None:
                    complete()
                is_complete = True
                continue
            try:
                return self._conclude()
            except NoMajority:
                self._let_go()
                raise
            except Deaf:
                self._let_go()
                self._begin_anew()

    def _let_go(self) -> None:
        """Wait for what is under way, so that it does not meet what is sent next."""
        for part in self._voted.values():
            with suppress(NoMajority):  # witnesses are of several minds there, too
                part.receive()

    def _begin_anew(self) -> None:
        """Leave the slices of ranks that do not receive well to others.

        Raises:
            NoMajority: when there are no others.
        """
        p, before = self.step.collectives.size, self._without
        self._without = before | self._findings.receivers
        if len(self._without) == p or self._without == before:
            raise NoMajority(
                f"no update in this step: ranks {sorted(self._without)} receive something else "
                "than was sent. Check the network and the memory of their hosts"
            )
        self._parts = cut(len(self.step.copy), p, len(self._parts), self._without)
        self._sent, self._voted = {}, {}

    def _conclude(self) -> Outcome:
        """Return the outcome, now that all votes are known."""
        silenced: set[int] = set()
        while True:
            try:
                verdict, non_finite = self._update(silenced)
                break
            except Silenced as error:
                silenced.add(error.group)
        findings, parts = self._findings, self._voted.values()
        return Outcome(
            self.step.update,
            _accuse(self.step.plan.groups, verdict, findings.senders),
            non_finite,
            {
                MISCALCULATION: tuple(sorted(findings.wrong)),
                RECEPTION: tuple(sorted(findings.receivers)),
            },
            frozenset(findings.suspects),
            {words: means for part in parts for words, means in part.means.items()},
            self.step.fingerprints.of_each(
                [np.concatenate([self._digests[part] for part in range(len(parts))])], [0]
            )[0],
        )

    def _update(self, silenced: Collection[int]) -> tuple[Verdict, tuple[int, ...]]:
        """See to it that the update is there; return the votes, and the groups not finite.

        Args:
            silenced: groups whose vote does not count.
        """
        parts = [self._voted[part] for part in range(len(self._parts))]
        verdict = _silence(merge([part.verdict for part in parts]), silenced)
        in_parts = {group for part in parts for group in part.non_finite}
        non_finite = tuple(group for group in verdict.winners if group in in_parts)
        rule = rule_for(self.step.plan, verdict, non_finite)
        kept = tuple(group for group in verdict.winners if group not in non_finite)
        conclude(parts, rule, kept)
        for part in range(len(parts)):
            self._hand_on(part)
        return verdict, non_finite

    def _recall(self) -> None:
        """Let the parts be sent again that some ranks could not send."""
        for part in self._incomplete:
            del self._sent[part]
        self._incomplete.clear()

    def _vote(self, part: int) -> None:
        """Let the votes on a part be known; wait for its slices if they are not here yet."""
        if part in self._voted or part in self._incomplete:
            return
        try:
            voted = self._sent[part].vote()
        except RanksJoined as error:  # which other parts are to hear, too
            voted, self._joined = None, error
        if voted is None:
            self._incomplete.add(part)
            return
        self._voted[part] = voted
        voted.go_ahead()

    def _hand_on(self, part: int) -> None:
        """Tell that a part of the update is there, unless that was told."""
        if self._voted[part].is_new:
            self._digests[part] = self._voted[part].digest()
            self._on_update(part)


def _silence(verdict: Verdict, groups: Collection[int]) -> Verdict:
    """Return the verdict in which these groups have no vote."""
    votes = [
        replace(vote, winners=None) if group in groups else vote
        for group, vote in enumerate(verdict.votes)
    ]
    return Verdict(tuple(votes))


def _accuse(groups: Groups, verdict: Verdict, accused: Collection[int]) -> Verdict:
    """Return the verdict with the accused ranks among the dissenters."""
    votes = list(verdict.votes)
    for rank in sorted(accused):
        vote = votes[groups.of(rank)]
        dissenters = tuple(sorted({*vote.dissenters, rank}))
        votes[groups.of(rank)] = replace(vote, dissenters=dissenters)
    return Verdict(tuple(votes))

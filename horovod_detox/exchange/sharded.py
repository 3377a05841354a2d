"""The exchange in which no rank receives a whole foreign gradient.

The copies are cut into p slices; rank s owns slice s.

1. Send: every rank fingerprints its slices. Allgather of all fingerprints; beside it, for each
   slice and each group, one sender sends that slice to its owner.
2. Vote: from the table of fingerprints every rank computes the same votes. Repair: where a sender
   lost, a member of the majority sends that slice again.
3. Check: every owner holds what it received against the fingerprint, and accuses the senders whose
   slice was not what they had fingerprinted. Aggregate: it reduces its columns; where a rule needs
   the Gram matrix, all ranks gather those of the slices and add them up.
4. Broadcast: every owner sends its slice of the update to all; the accusations travel beside it.
   After an accusation, others send, and 3 and 4 are repeated.

With w witnesses, ranks of w other groups receive each slice, too, and do what its owner does: each
rank does 1 to 3 for the slice that it owns and those that it witnesses. Then

5. Confirm: from the fingerprints of all results every rank learns which are those of most; a slice
   that arrived otherwise is broadcast again, by a witness, and its owner is named.

Parts of the copy may go through 1 to 4 one after another, while later ones are still computed; see
`part.py`. When a later part shows that the vote of a group does not count, the earlier ones are
aggregated again.

A rank receives `(1 + w) k / p + 1` times the gradient, that is `(1 + w) / r + 1`; allreduce: 2.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from horovod_detox.exchange.part import SentPart, VotedPart
from horovod_detox.exchange.step import Outcome, Step, rule_for
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import Verdict, merge


def exchange(step: Step) -> Outcome:
    """Turn this rank's copy into the update that all ranks share."""
    return Sharded(step).finish()


class Sharded:
    """An exchange under way: parts of the copy may be sent while others are not known yet.

    Args:
        step: what this rank brings.
        parts: the words of each part, `(start, stop)`, one after another. Of several parts those
            that were sent are aggregated and shared before the others, so no rule may need more
            than the columns of a part.
    """

    def __init__(self, step: Step, parts: Sequence[tuple[int, int]] | None = None) -> None:
        self._step = step
        self._words = parts or [(0, len(step.copy))]
        self._sent: dict[int, SentPart] = {}
        self._voted: dict[int, VotedPart] = {}

    def send(self, part: int) -> None:
        """Let the fingerprints and slices of a part be on their way; its words are final."""
        self._send(part)

    def advance(self) -> None:
        """Go on with the parts that were sent, without waiting for another rank."""
        for part in sorted(self._sent.keys() - self._voted.keys()):
            if self._sent[part].is_received():
                self._vote(part)

    def finish(self) -> Outcome:
        """Send what was not sent, wait for the other ranks and return the outcome."""
        every = range(len(self._words))
        for part in every:
            self._send(part)
        parts = [self._vote(part) for part in every]
        for part in parts:
            part.receive_update()
        verdict = merge([part.verdict for part in parts])
        in_parts = {group for part in parts for group in part.non_finite}
        non_finite = tuple(group for group in verdict.winners if group in in_parts)
        rule = rule_for(self._step.plan, verdict, non_finite)
        kept = tuple(group for group in verdict.winners if group not in non_finite)
        for part in parts:
            part.conclude(rule, kept)
        accused = {rank for part in parts for rank, _ in part.accused}
        wrong = {rank for part in parts for rank in part.wrong}
        return Outcome(
            self._step.update,
            _accuse(self._step.plan.groups, verdict, accused),
            non_finite,
            tuple(sorted(wrong)),
            {words: means for part in parts for words, means in part.means.items()},
        )

    def _send(self, part: int) -> None:
        """Send a part, unless it was sent."""
        if part not in self._sent:
            name = f".{part}" if part else ""
            self._sent[part] = SentPart(self._step.cut(*self._words[part]), name)

    def _vote(self, part: int) -> VotedPart:
        """Return a part whose votes are known; wait for its slices if they are not here yet."""
        if part not in self._voted:
            self._voted[part] = self._sent[part].vote()
        return self._voted[part]


def _accuse(groups: Groups, verdict: Verdict, accused: Collection[int]) -> Verdict:
    """Return the verdict with the accused ranks among the dissenters."""
    votes = list(verdict.votes)
    for rank in sorted(accused):
        vote = votes[groups.of(rank)]
        dissenters = tuple(sorted({*vote.dissenters, rank}))
        votes[groups.of(rank)] = replace(vote, dissenters=dissenters)
    return Verdict(tuple(votes))

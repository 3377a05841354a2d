"""Fault drills: corrupt a copy before it is exchanged."""

from collections.abc import Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Copy, Words, like, to_numpy
from horovod_detox.attacks import Attack, FaultyRank
from horovod_detox.config import Plan
from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import NOTHING, Collectives
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority, Outcome
from horovod_detox.packing.bits import bits_of_numpy, words_of_numpy
from horovod_detox.packing.layout import SIGN, Layout


class CopyDrill:
    """What an attack makes of the copies of one rank, each flat buffer by itself.

    An attack sees signs as the numbers 1 and -1, and of what it sends only the signs leave.

    Attributes:
        liars: the faulty rank as every flat buffer sees it, once there was a copy.

    Raises:
        ValueError: when the attack does not fit the groups.
    """

    def __init__(self, attack: Attack, rank: int, plan: Plan) -> None:
        attack.check(plan.groups)
        self._attack, self._rank, self._plan = attack, rank, plan
        self.liars: list[FaultyRank] = []

    def corrupt(
        self, step: int, copy: Copy, layout: Layout, everyone: Sequence[np.ndarray] | None = None
    ) -> Copy:
        """Return the copy that this rank sends: `(w,) -> (w,)` words; an honest one as it is.

        Args:
            step: the number of this step, the same on all ranks.
            copy: of this rank; left as it is.
            layout: what the words are.
            everyone: for omniscient attacks, each flat buffer of all ranks, `(p, length)`.
        """
        segments = layout.buffers.segments
        if len(self.liars) != len(segments):
            self.remember([[]] * len(segments))
        lie = to_numpy(copy).copy()
        for i, (buffer, own) in enumerate(
            zip(layout.typed(lie), numbers(layout, copy), strict=True)
        ):
            theirs = None if everyone is None else everyone[i]
            sent = self.liars[i].corrupt(step, own, theirs, self._update_of)
            buffer[:] = words_of_numpy(sent >= 0) if segments[i].dtype == SIGN else sent
        return like(copy, lie)

    def remember(self, pasts: Sequence[Sequence[np.ndarray]]) -> None:
        """Begin with these gradients of earlier steps, oldest first, of each flat buffer."""
        self.liars = [FaultyRank(self._attack, self._rank, self._plan.groups) for _ in pasts]
        for liar, past in zip(self.liars, pasts, strict=True):
            liar.past.extend(past)

    def _update_of(self, copies: np.ndarray) -> np.ndarray:
        """Compute what the job would make of these copies: `(p, n) -> (n,)`."""
        layout = Layout((("buffer", copies.shape[1:], copies.dtype.name),))
        words = [layout.pack([copy]) for copy in copies]
        try:
            outcome = aggregate_copies(self._plan, layout.buffers, words)
        except NoMajority:
            return np.full_like(copies[0], np.nan)
        return layout.typed(outcome.update)[0]


def numbers(layout: Layout, copy: Copy) -> list[np.ndarray]:
    """Return copies of the flat buffers, signs as numbers: `(w,)` words -> `[(length,), ...]`."""
    return [
        _signs(buffer, segment.length) if segment.dtype == SIGN else buffer.copy()
        for buffer, segment in zip(
            layout.typed(to_numpy(copy)), layout.buffers.segments, strict=True
        )
    ]


def _signs(words: Words, length: int) -> np.ndarray:
    """Return the first signs of words as numbers: `(w,) -> (length,)` of 1 and -1 in float32."""
    return 2 * bits_of_numpy(words, length).astype(np.float32) - 1


class DrilledEngine:
    """An engine that lets an attack corrupt this rank's copies.

    Raises:
        ValueError: when the attack does not fit the groups.
    """

    def __init__(self, engine: Engine, attack: Attack, collectives: Collectives) -> None:
        self._engine = engine
        self._attack = attack
        self._collectives = collectives
        self._drill = CopyDrill(attack, collectives.rank, engine.plan)
        self.presence, self.tally, self.scrub = engine.presence, engine.tally, engine.scrub

    def exchange(
        self,
        copy: Copy,
        layout: Layout,
        update: Words | None = None,
        is_complete: bool = True,
    ) -> Outcome:
        """Corrupt the copy if this rank lies now, and exchange it: see `Engine.exchange`.

        An omniscient attack makes all ranks gather all copies: traffic that only drills have.
        """
        everyone = self._gather(copy, layout) if self._attack.omniscient else None
        sent = self._drill.corrupt(self._engine.step, copy, layout, everyone)
        return self._engine.exchange(sent, layout, update, is_complete)

    def _gather(self, copy: Copy, layout: Layout) -> list[np.ndarray]:
        """Return each flat buffer of all ranks, `(p, length)`."""
        received = self._collectives.allgather_words("drill", NOTHING, copy).wait()
        return stack_numbers(layout, [message.words for message in received])


def stack_numbers(layout: Layout, copies: Sequence[Copy]) -> list[np.ndarray]:
    """Return each flat buffer of all p copies: p times `(w,)` words -> `[(p, length), ...]`."""
    buffers = zip(*(numbers(layout, copy) for copy in copies), strict=True)
    return [np.stack(rows) for rows in buffers]

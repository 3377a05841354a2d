"""Fault drills: corrupt a copy before it is exchanged."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_detox.aggregators.signs import pack_signs, unpack_signs
from horovod_detox.arrays import like, to_numpy
from horovod_detox.attacks import Attack, Drill
from horovod_detox.config import Plan
from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.outcome import NoMajority, Outcome
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.layout import SIGN, Layout


class CopyDrill:
    """What an attack makes of the copies of one rank, each flat buffer by itself.

    An attack sees signs as the numbers 1 and -1, and of what it sends only the signs leave.

    Attributes:
        drills: the drill of every flat buffer, once there was a copy.

    Raises:
        ValueError: when the attack does not fit the groups.
    """

    def __init__(self, attack: Attack, rank: int, plan: Plan) -> None:
        attack.check(plan.groups)
        self._attack, self._rank, self._plan = attack, rank, plan
        self.drills: list[Drill] = []

    def corrupt(
        self, step: int, copy: Any, layout: Layout, everyone: Sequence[np.ndarray] | None = None
    ) -> Any:
        """Return the copy that this rank sends: `(w,) -> (w,)` words; an honest one as it is.

        Args:
            step: the number of this step, the same on all ranks.
            copy: of this rank; left as it is.
            layout: what the words are.
            everyone: for omniscient attacks, each flat buffer of all ranks, `(p, length)`.
        """
        segments = layout.buffers.segments
        if len(self.drills) != len(segments):
            self.remember([[]] * len(segments))
        lie = to_numpy(copy).copy()
        for i, (buffer, own) in enumerate(
            zip(layout.typed(lie), numbers(layout, copy), strict=True)
        ):
            theirs = None if everyone is None else everyone[i]
            sent = self.drills[i].corrupt(step, own, theirs, self._update_of)
            buffer[:] = pack_signs(sent) if segments[i].dtype == SIGN else sent
        return like(copy, lie)

    def remember(self, pasts: Sequence[Sequence[np.ndarray]]) -> None:
        """Begin with these gradients of earlier steps, oldest first, of each flat buffer."""
        self.drills = [Drill(self._attack, self._rank, self._plan.groups) for _ in pasts]
        for drill, past in zip(self.drills, pasts, strict=True):
            drill.past.extend(past)

    def _update_of(self, copies: np.ndarray) -> np.ndarray:
        """Compute what the job would make of these copies: `(p, n) -> (n,)`."""
        layout = Layout((("buffer", copies.shape[1:], copies.dtype.name),))
        words = [layout.pack([copy]) for copy in copies]
        try:
            outcome = aggregate_copies(self._plan, layout, words)
        except NoMajority:
            return np.full_like(copies[0], np.nan)
        return layout.typed(outcome.update)[0]


def numbers(layout: Layout, copy: Any) -> list[np.ndarray]:
    """Return copies of the flat buffers, signs as numbers: `(w,)` words -> `[(length,), ...]`."""
    return [
        unpack_signs(buffer, segment.length) if segment.dtype == SIGN else buffer.copy()
        for buffer, segment in zip(
            layout.typed(to_numpy(copy)), layout.buffers.segments, strict=True
        )
    ]


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

    def exchange(self, copy: Any, layout: Layout, update: Any | None = None) -> Outcome:
        """Corrupt the copy if this rank lies now, and exchange it: see `Engine.exchange`.

        An omniscient attack makes all ranks gather all copies: traffic that only drills have.
        """
        everyone = self._gather(copy, layout) if self._attack.omniscient else None
        sent = self._drill.corrupt(self._engine.step, copy, layout, everyone)
        return self._engine.exchange(sent, layout, update)

    def _gather(self, copy: Any, layout: Layout) -> list[np.ndarray]:
        """Return each flat buffer of all ranks, `(p, length)`."""
        parts = [copy] * self._collectives.size
        received = self._collectives.alltoall("drill", parts).wait()
        return stack_numbers(layout, received)


def stack_numbers(layout: Layout, copies: Sequence[Any]) -> list[np.ndarray]:
    """Return each flat buffer of all p copies: p times `(w,)` words -> `[(p, length), ...]`."""
    buffers = zip(*(numbers(layout, copy) for copy in copies), strict=True)
    return [np.stack(rows) for rows in buffers]

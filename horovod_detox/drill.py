"""Fault drills on a real job: corrupt a copy before it is exchanged."""

from typing import Any

import numpy as np

from horovod_detox.aggregators.signs import pack_signs, unpack_signs
from horovod_detox.arrays import like, to_numpy
from horovod_detox.attacks import Attack, Drill
from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.outcome import NoMajority, Outcome
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.layout import SIGN, Layout, Segment


class DrilledEngine:
    """An engine that lets an attack corrupt this rank's copies, each flat buffer by itself.

    An attack sees signs as the numbers 1 and -1, and of what it sends only the signs leave.

    Raises:
        ValueError: when the attack does not fit the groups.
    """

    def __init__(self, engine: Engine, attack: Attack, collectives: Collectives) -> None:
        attack.check(engine.plan.groups)
        self._engine = engine
        self._attack = attack
        self._plan = engine.plan
        self._collectives = collectives
        self._drills: list[Drill] = []

    def exchange(self, copy: Any, layout: Layout, update: Any | None = None) -> Outcome:
        """Corrupt the copy if this rank lies now, and exchange it: see `Engine.exchange`."""
        return self._engine.exchange(self._corrupt(self._engine.step, copy, layout), layout, update)

    def _corrupt(self, step: int, copy: Any, layout: Layout) -> Any:
        """Return the copy to send: `(w,) -> (w,)` words; `copy` itself from an honest rank.

        An omniscient attack makes all ranks gather all copies: traffic that only drills have.
        """
        everyone = self._gather(copy) if self._attack.omniscient else None
        if len(self._drills) != len(layout.buffers.segments):
            rank, groups = self._collectives.rank, self._plan.groups
            self._drills = [Drill(self._attack, rank, groups) for _ in layout.buffers.segments]
        lie = to_numpy(copy).copy()
        segments = layout.buffers.segments
        for i, (drill, buffer) in enumerate(zip(self._drills, layout.typed(lie), strict=True)):
            theirs = None
            if everyone is not None:
                theirs = np.stack([_numbers(layout.typed(c)[i], segments[i]) for c in everyone])
            own = _numbers(buffer, segments[i])
            sent = drill.corrupt(step, own, theirs, self._update_of)
            buffer[:] = pack_signs(sent) if segments[i].dtype == SIGN else sent
        return like(copy, lie)

    def _gather(self, copy: Any) -> list[np.ndarray]:
        parts = [copy] * self._collectives.size
        received = self._collectives.alltoall("drill", parts).wait()
        return [to_numpy(each) for each in received]

    def _update_of(self, copies: np.ndarray) -> np.ndarray:
        """Compute what the job would make of these copies: `(p, n) -> (n,)`."""
        layout = Layout((("buffer", copies.shape[1:], copies.dtype.name),))
        words = [layout.pack([copy]) for copy in copies]
        try:
            outcome = aggregate_copies(self._plan, layout, words)
        except NoMajority:
            return np.full_like(copies[0], np.nan)
        return layout.typed(outcome.update)[0]


def _numbers(buffer: np.ndarray, segment: Segment) -> np.ndarray:
    """Return a copy of a flat buffer, signs as numbers: `(length,)`."""
    return unpack_signs(buffer, segment.length) if segment.dtype == SIGN else buffer.copy()

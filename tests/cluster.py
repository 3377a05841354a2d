"""A small job on the in-process cluster, for tests of the protocol."""

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.packing.layout import WORD, Layout


def layout_of(*arrays: np.ndarray) -> Layout:
    """Return the layout of one parameter per array."""
    return Layout(tuple((f"p{i}", a.shape, a.dtype.name) for i, a in enumerate(arrays)))


def parts_wanted(detox: Detox, layout: Layout) -> int:
    """Return in how many parts the settings want a copy to travel."""
    return -(-layout.words * WORD // detox.overlap_bytes) if detox.overlap_bytes else 1


def exchange_all(detox: Detox, copies: list[list[list[np.ndarray]]], timeout: float = 20.0):
    """Run steps of exchanges: `copies[step][rank]` are the flat buffers that the rank sends.

    Returns the outcomes as `[rank][step]` and the reports by rank.
    """
    plan = detox.plan(len(copies[0]))

    def program(collectives):
        engine = Engine(plan, collectives)
        outcomes = []
        for step in copies:
            layout = layout_of(*step[collectives.rank])
            outcomes.append(engine.exchange(layout.pack(step[collectives.rank]), layout))
        return outcomes, engine.ledger.report()

    results = InProcessCluster(len(copies[0]), timeout).run(program)
    return [outcomes for outcomes, _ in results], [report for _, report in results]


def failing_everywhere(program, size, error, match):
    """Check that `program` raises on every rank, well before any timeout."""

    def expect(collectives):
        with pytest.raises(error, match=match):
            program(collectives)
        return True

    assert InProcessCluster(size).run(expect) == [True] * size


class Tampering:
    """The seam of one rank, through which its slices leave with other bits than fingerprinted."""

    def __init__(self, collectives, tamper=lambda part: part):
        self.tamper = tamper
        self._collectives = collectives
        self.rank, self.size = collectives.rank, collectives.size

    def __getattr__(self, name):
        return getattr(self._collectives, name)

    def alltoall(self, name, facts, parts, spare=None):
        if name.startswith("slices"):
            parts = [self.tamper(part) for part in parts]
        return self._collectives.alltoall(name, facts, parts, spare)

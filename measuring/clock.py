"""The clock of all measurements: operations take turns with a reference, and ratios are paired."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Action = Callable[[], Any]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """What is timed, what is done before it, and what is checked after it, off the clock."""

    run: Action
    prepare: Action = _nothing
    check: Action = _nothing


@dataclass(frozen=True)
class Clock:
    """A clock for one process, or for the ranks of a job.

    Attributes:
        together: lets all ranks begin at once.
        slowest: returns the largest value of any rank, element by element.
        repeats: measured rounds, at most.
        limit: seconds after which no further round begins.
        now: the time in seconds; `time.process_time`, that of the processors for this process
            alone, tells what it does on a machine that has other work.
    """

    together: Action = _nothing
    slowest: Callable[[np.ndarray], np.ndarray] = np.asarray
    repeats: int = 5
    limit: float = float("inf")
    now: Callable[[], float] = time.perf_counter

    def compare(
        self, reference: Operation, operations: Sequence[Operation]
    ) -> list[dict[str, float]]:
        """Time every operation right after the reference, in rounds, of which the first is dropped.

        The first round counts when there was time for no other. Returns for each operation the
        median times, and the quartiles of operation / reference among the pairs.
        """
        rounds: list[list[tuple[float, float]]] = []
        start = self.now()
        while len(rounds) <= self.repeats:
            if rounds and self.slowest(np.array(self.now() - start)) > self.limit:
                break
            rounds.append([(self.seconds(reference), self.seconds(each)) for each in operations])
        times = self.slowest(np.array(rounds[1:] or rounds))
        return [_statistics(times[:, i]) for i in range(len(operations))]

    def seconds(self, operation: Operation) -> float:
        """Return how long one run takes on this rank."""
        operation.prepare()
        self.together()
        start = self.now()
        operation.run()
        elapsed = self.now() - start
        operation.check()
        return elapsed


def _statistics(pairs: np.ndarray) -> dict[str, float]:
    """Summarize (reference, operation) pairs: `(rounds, 2)` seconds."""
    reference, operation = np.median(pairs, axis=0) * 1000
    low, ratio, high = np.quantile(pairs[:, 1] / pairs[:, 0], (0.25, 0.5, 0.75))
    names = ("reference_ms", "ms", "low", "ratio", "high")
    values = zip(names, (reference, operation, low, ratio, high), strict=True)
    return {name: float(value) for name, value in values} | {"rounds": len(pairs)}

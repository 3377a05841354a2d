"""Who comes late to exchanges, from how long each rank waited in them: no fault, but it costs."""

from dataclasses import dataclass
from statistics import median

import numpy as np

LEAST = 0.1
"""Seconds by which a rank is late, at least, to be counted."""
MOST = 1e6
"""More seconds than that nobody can have waited."""
MATTERS = 0.05
"""Share of its time that a job has lost by a rank, at least, for this to be told at its end."""
LEAST_LOSS = 10.0
"""And so many seconds."""


@dataclass(frozen=True)
class Late:
    """How often a rank came to an exchange later than the median rank.

    Attributes:
        exchanges: in how many exchanges.
        seconds: by how much, in all.
    """

    exchanges: int = 0
    seconds: float = 0.0

    def matters(self, seconds: float) -> bool:
        """Return whether a job of so many seconds has lost much by it.

        >>> Late(20, 40.0).matters(500), Late(20, 40.0).matters(5000), Late(2, 4.0).matters(9)
        (True, False, False)
        """
        return self.seconds >= max(LEAST_LOSS, MATTERS * seconds)

    def __str__(self) -> str:
        """Tell it in a few words."""
        return f"in {self.exchanges} exchanges, for {self.seconds:.0f} s in total"


class Lateness:
    """Adds up how late ranks came.

    Args:
        size: the number of ranks.
    """

    def __init__(self, size: int) -> None:
        self._late = [Late()] * size

    def note(self, waited: np.ndarray) -> None:
        """Enter how many seconds each rank waited for the others in an exchange.

        All end it at about the same time. So who waited less has come later.

        >>> lateness = Lateness(3)
        >>> lateness.note(np.array([2.0, 0.0, 2.1]))
        >>> lateness.ranks()
        {1: Late(exchanges=1, seconds=2.0)}
        """
        seconds = [min(max(0.0, each), MOST) for each in waited.tolist()]
        usual = median(seconds)
        for rank, late in enumerate(usual - each for each in seconds):
            if late >= LEAST:
                before = self._late[rank]
                self._late[rank] = Late(before.exchanges + 1, before.seconds + late)

    def ranks(self) -> dict[int, Late]:
        """Return how late those ranks came that ever did."""
        return {rank: late for rank, late in enumerate(self._late) if late.exchanges}

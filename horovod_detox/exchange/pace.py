"""How fast this rank goes from exchange to exchange."""

import time
from collections import deque
from statistics import median

REMEMBERED = 50


class Pace:
    """Counts exchanges, and remembers the seconds between the latest.

    Attributes:
        steps: the number of exchanges.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._first: float | None = None
        self._latest: float | None = None
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def note(self) -> None:
        """Note that an exchange has ended."""
        now = time.monotonic()
        if self._latest is not None:
            self._seconds.append(now - self._latest)
        self._first, self._latest = self._first or now, now
        self.steps += 1

    def seconds(self) -> float:
        """Return the seconds from the end of the first exchange to that of the latest."""
        return (self._latest or 0.0) - (self._first or 0.0)

    def median(self) -> float:
        """Return the median of the seconds between two exchanges; 0 before the second."""
        return median(list(self._seconds)) if self._seconds else 0.0

"""What this process waits for, and what ends its waits.

A wait is opened by whoever enters what all ranks have to come to: an exchange, or a collective of
the script. In it there may be many small ones, on any thread. Who watches the job ends it by name.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from horovod_detox.exchange.pace import Pace


class ExchangeTimeout(RuntimeError):
    """A wait was not over in time: some rank did not take part.

    Attributes:
        is_explained: whether the text says who is missing; then it says all that there is to say.
    """

    is_explained = False

    @classmethod
    def after(cls, timeout: float, rank: int, name: str) -> "ExchangeTimeout":
        """Say who waited, for how long and in which collective."""
        return cls(
            f"rank {rank} waited {timeout:g} s for the other ranks in {name!r}: some rank did not "
            "take part (it has stopped, is far behind, or took another path through the script). "
            "If it is only slow, raise Detox(timeout=)"
        )

    @classmethod
    def at_the_end(cls, rank: int, name: str) -> "ExchangeTimeout":
        """Say who waited, and in which collective, when its process came to its end."""
        return cls(f"rank {rank} ended while it waited for the other ranks in {name!r}")


class RankLeft(ExchangeTimeout):
    """A wait leads nowhere: some rank has left the job."""


@dataclass(frozen=True, eq=False)
class Wait:
    """A wait for other ranks.

    Attributes:
        what: is waited in, in words, the same on all ranks that wait for each other there; what is
            behind a # tells it from others, and is not for people.
        ranks: who has to come there; empty: all.
        since: when it began, by the clock of `time.monotonic`.
        is_possible: whether it is not known that this process waits there: it may compute.
    """

    what: str
    ranks: tuple[int, ...] = ()
    since: float = field(default_factory=time.monotonic)
    is_possible: bool = False


class Waits:
    """The open waits of a process; the outermost is what the others see.

    Attributes:
        pace: of its exchanges.
        latest_end: when a wait was over last, by the clock of `time.monotonic`.
        process_ends: whether it has come to its end, and waits for nobody any more.
    """

    def __init__(self) -> None:
        self._open: list[Wait] = []
        self._ended: dict[str, ExchangeTimeout] = {}
        self.pace = Pace()
        self.latest_end = 0.0
        self.process_ends = False

    @contextmanager
    def waiting(
        self, what: str, ranks: Sequence[int] = (), once: bool = False, is_possible: bool = False
    ) -> Iterator[None]:
        """Wait for other ranks inside of the block.

        Args:
            what, ranks, is_possible: as of `Wait`.
            once: whether there is never another wait of this name: one that was ended without this
                rank has ended for it, too.
        """
        if not once:
            self._ended.pop(what, None)
        wait = Wait(what, tuple(ranks), is_possible=is_possible)
        self._open.append(wait)
        try:
            yield
        finally:
            self._open.remove(wait)
            self.latest_end = time.monotonic()

    def outermost(self) -> Wait | None:
        """Return what this process waits for, or may wait for; None: for nobody."""
        return min([*self._open], key=lambda wait: wait.is_possible, default=None)

    def end(self, what: str, why: ExchangeTimeout) -> None:
        """End all waits of a name, now or when they are entered."""
        self._ended.setdefault(what, why)

    def end_with_the_process(self) -> None:
        """Wait for nobody any more."""
        self.process_ends = True

    def begin_anew(self) -> None:
        """Forget which waits have ended, as a new session uses their names again."""
        self._ended.clear()

    def ended(self) -> ExchangeTimeout | None:
        """Return why a wait of this process has ended; None: none has."""
        found = (self._ended[wait.what] for wait in [*self._open] if wait.what in self._ended)
        return next(found, None)


waits = Waits()
"""Those of this process, which is one rank."""

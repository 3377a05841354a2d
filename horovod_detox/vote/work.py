"""How often optimizers exchanged gradients, and how often they stepped."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """What an optimizer has done, as this rank counts it.

    Attributes:
        name: the class of the optimizer; of tapes, whose steps are not seen, "tapes".
        exchanges: how often its gradients were exchanged.
        steps: how often it changed its parameters; None: that is not seen.
    """

    name: str
    exchanges: int = 0
    steps: int | None = 0

    def __str__(self) -> str:
        """Tell it in a few words."""
        if self.steps is None:
            return f"{self.name}: {self.exchanges} exchanges"
        return f"{self.name}: {self.steps} steps in {self.exchanges} exchanges"


@dataclass
class Tally:
    """Counts what an optimizer does.

    Attributes:
        name, exchanges, steps: as of `Work`.
        count_steps: returns the number of steps, where these are counted elsewhere and `steps` is
            how many there were before the latest exchange.
    """

    name: str = ""
    exchanges: int = 0
    steps: int | None = 0
    count_steps: Callable[[], int] | None = None
    _before: Work = field(default=Work(""), compare=False)

    def work(self) -> Work:
        """Return what it has done so far, or since `begin_anew`."""
        all_of_it, before = self._all(), self._before
        steps = None if all_of_it.steps is None else all_of_it.steps - (before.steps or 0)
        return Work(self.name, all_of_it.exchanges - before.exchanges, steps)

    def begin_anew(self) -> None:
        """Count from here on."""
        self._before = self._all()

    def _all(self) -> Work:
        steps = self.count_steps() if self.count_steps else self.steps
        return Work(self.name, self.exchanges, steps)


def totals(works: Iterable[Work]) -> list[Work]:
    """Add up what optimizers of one name have done.

    >>> [str(total) for total in totals([Work("SGD", 3, 2), Work("Adam", 1), Work("SGD", 1, 1)])]
    ['SGD: 3 steps in 4 exchanges', 'Adam: 0 steps in 1 exchanges']
    """
    by_name: dict[str, list[Work]] = {}
    for work in works:
        by_name.setdefault(work.name, []).append(work)
    return [
        Work(name, sum(work.exchanges for work in same), _sum(work.steps for work in same))
        for name, same in by_name.items()
    ]


def _sum(steps: Iterable[int | None]) -> int | None:
    seen = [number for number in steps if number is not None]
    return sum(seen) if seen else None

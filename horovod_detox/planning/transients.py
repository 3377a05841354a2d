"""What transient faults do to a job: if what they hit stays wrong, and if it is healed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, exp, expm1, log, log1p

from horovod_detox.vote.groups import Groups


@dataclass(frozen=True)
class Faults:
    """How often faults hit what ranks hold, each rank in each step by itself.

    Attributes:
        rate: the chance that one hits a rank in a step.
        steps: of the job.
        scrub_every: steps after which ranks compare what they hold, as of Detox.

    Raises:
        ValueError: naming the field, its value and its bound.
    """

    rate: float
    steps: int
    scrub_every: int

    def __post_init__(self) -> None:
        for field in ("steps", "scrub_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: it must be at least 1")
        if not 0 <= self.rate < 1:
            raise ValueError(f"fault_rate = {self.rate}: it must be a chance, from 0 to below 1")


@dataclass(frozen=True)
class Endurance:
    """How likely it is that faults cost some team its majority at some time of a job.

    Attributes:
        group_size: r asked for; None: all ranks are one team, as for weights.
        sizes: of the teams.
        stay: if what is hit stays wrong to the end.
        within_scrub: if it is healed when ranks compare; None: they do not, in groups of one.
        at_once: if it is healed in the step that it shows in; None: likewise.
    """

    group_size: int | None
    sizes: tuple[int, ...]
    stay: float
    within_scrub: float | None
    at_once: float | None


def endurance(faults: Faults, groups: Groups, group_size: int | None) -> Endurance:
    """Return what faults do to groups, or to one team of all ranks (`group_size` None)."""
    sizes = tuple(map(len, groups.members)) if group_size else (groups.world_size,)

    def chance(window: int) -> float:
        return chance_of_loss(sizes, faults.rate, faults.steps, window)

    compares = max(sizes) > 1
    return Endurance(
        group_size,
        sizes,
        stay=chance(faults.steps),
        within_scrub=chance(faults.scrub_every) if compares else None,
        at_once=chance(1) if compares else None,
    )


def chance_of_loss(sizes: Sequence[int], rate: float, steps: int, window: int) -> float:
    """Return how likely some team is without a majority of ranks that are right, at some time.

    What is hit stays wrong to the end of its window of steps, and is right in the next. A rank is
    hit in w steps with the chance x = 1 - (1 - rate)^w. A team of m keeps its majority in a window
    if fewer than m / 2 of its members are hit: with the chance

        K(m, w) = sum over j < m / 2 of C(m, j) x^j (1 - x)^(m - j).

    The result is 1 - prod over teams of K(m, window)^n K(m, rest): n windows, and the steps that
    are left.

    >>> f"{chance_of_loss([3] * 15, rate=1e-7, steps=10**6, window=10**6):.3f}"
    '0.321'
    >>> f"{chance_of_loss([3] * 15, rate=1e-7, steps=10**6, window=100):.2g}"
    '4.5e-05'
    """
    window = min(window, steps)
    windows, rest = divmod(steps, window)
    kept = sum(
        windows * _log_of_keeping(size, rate, window) + _log_of_keeping(size, rate, rest)
        for size in sizes
    )
    return max(0.0, -expm1(kept))


def _log_of_keeping(size: int, rate: float, steps: int) -> float:
    """Return the logarithm of K(size, steps), exact also where K is next to 1."""
    hit, missed = -expm1(steps * log1p(-rate)), exp(steps * log1p(-rate))
    shares = [comb(size, j) * hit**j * missed ** (size - j) for j in range(size + 1)]
    lost, kept = sum(shares[(size + 1) // 2 :]), sum(shares[: (size + 1) // 2])
    if lost < 0.5:
        return log1p(-lost)
    return log(kept) if kept else -float("inf")

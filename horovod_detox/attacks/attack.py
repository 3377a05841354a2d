"""What an attack is, and what it sees."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from horovod_detox.attacks.placement import parse_placement, place
from horovod_detox.attacks.stream import stream
from horovod_detox.vote.groups import Groups


def widen(array: np.ndarray) -> np.ndarray:
    """Return float16 and bfloat16 values as float32, to calculate with; others as they are."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a faulty rank knows in one step, with p ranks and gradients of d elements.

    Attributes:
        own: `(d,)`, its own honest gradient: float16, bfloat16, float32 or float64.
        honest: `(h, d)`, the copies of the honest ranks, by rank; for omniscient attacks only.
        past: its own gradients of earlier steps, newest last, as many as the attack remembers.
        rng: shared by the colluders of a group in this step; a rank's own for independent faults.
        num_ranks: p.
        num_faulty: the number of faulty ranks in this step, this one included.
        aggregate: `(d,) -> (d,)`, the update that results when every faulty rank sends this lie.
    """

    own: np.ndarray
    honest: np.ndarray | None = None
    past: Sequence[np.ndarray] = ()
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    num_ranks: int = 1
    num_faulty: int = 1
    aggregate: Callable[[np.ndarray], np.ndarray] | None = None

    def cast(self, lie: np.ndarray) -> np.ndarray:
        """Return a lie as it is sent: in the dtype of the gradient."""
        return lie.astype(self.own.dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A fault of some ranks: what they send instead of their gradient, and when.

    A subclass defines `lie`.

    Attributes:
        ranks: the faulty ranks, or a placement: `random:5` (other ranks in every step), `fixed:5`
            (random ranks), `spread:5` (at most a minority of every group), `concentrated:5` (as
            many groups as possible lose their majority).
        steps: the steps in which it is active, `(first, last)` without the last, or a range.
        probability: the chance that it is active in such a step, drawn for each group, or for each
            rank when the faults are independent.
        seed: seeds every choice and all noise, equally on all ranks.
        omniscient: whether it sees the honest ranks' gradients. These are all it looks at, so that
            all faulty ranks send the same.
        colluding: whether the faulty ranks of a group agree on what they send.
        poisons: whether it acts on labels.
    """

    ranks: tuple[int, ...] | str = ()
    steps: range | tuple[int, int] | None = None
    probability: float = 1.0
    seed: int = 0
    omniscient: ClassVar[bool] = False
    colluding: ClassVar[bool] = True
    poisons: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", self._checked_ranks())
        object.__setattr__(self, "steps", self._checked_steps())
        self._demand_real("probability", least=0.0)
        self._demand(self.probability <= 1, f"probability {self.probability} is greater than 1")
        self._demand_integer("seed", least=0)

    @property
    def memory(self) -> int:
        """Return how many of its earlier gradients a faulty rank has to keep."""
        return 0

    def corrupt(self, scene: Scene) -> np.ndarray:
        """Return what a faulty rank sends: `(d,)` of its gradient's dtype, which stays as it is."""
        with np.errstate(all="ignore"):
            return scene.cast(self.lie(scene))

    @abstractmethod
    def lie(self, scene: Scene) -> np.ndarray:
        """Return the corrupted gradient, `(d,)` in any precision, as a new array."""

    def labels(self, labels: Any) -> Any:
        """Return the labels that a faulty rank trains on: the true ones."""
        return labels

    def check(self, groups: Groups) -> None:
        """Raise ValueError unless this attack can run on these groups."""
        faulty = self._placed(0, groups)
        self._demand(
            not self.omniscient or len(faulty) < groups.world_size,
            f"{len(faulty)} faulty of {groups.world_size} ranks leave no honest rank to observe",
        )

    def faulty_ranks(self, step: int, groups: Groups) -> tuple[int, ...]:
        """Return the ranks that are faulty in this step, ascending; the same on every rank.

        Raises:
            ValueError: when the ranks or the placement do not fit the groups.
        """
        if self.steps is not None and step not in self.steps:
            return ()
        return tuple(r for r in self._placed(step, groups) if self._strikes(step, r, groups))

    def party(self, rank: int, groups: Groups) -> int:
        """Return whom a faulty rank shares its random numbers with: its group, or itself alone."""
        return groups.of(rank) if self.colluding else rank

    def _placed(self, step: int, groups: Groups) -> tuple[int, ...]:
        if isinstance(self.ranks, str):
            return place(self.ranks, step, groups, self.seed)
        outside = [rank for rank in self.ranks if rank >= groups.world_size]
        self._demand(not outside, f"ranks {outside} are outside a job of {groups.world_size} ranks")
        return self.ranks

    def _strikes(self, step: int, rank: int, groups: Groups) -> bool:
        rng = stream(self.seed, "activity", step, self.party(rank, groups))
        return rng.random() < self.probability

    def _checked_ranks(self) -> tuple[int, ...] | str:
        if isinstance(self.ranks, str):
            parse_placement(self.ranks)
            return self.ranks
        self._demand(
            isinstance(self.ranks, Iterable) and all(isinstance(r, Integral) for r in self.ranks),
            f"ranks must be a tuple of ranks or a placement, not {self.ranks!r}",
        )
        ranks = tuple(sorted(int(rank) for rank in self.ranks))
        self._demand(not ranks or ranks[0] >= 0, f"ranks {ranks} contain a negative rank")
        self._demand(len(set(ranks)) == len(ranks), f"ranks {ranks} contain a rank twice")
        return ranks

    def _checked_steps(self) -> range | None:
        if self.steps is None or isinstance(self.steps, range):
            steps = self.steps
        else:
            self._demand(
                isinstance(self.steps, tuple)
                and len(self.steps) == 2
                and all(isinstance(step, Integral) for step in self.steps),
                f"steps must be (first, last), a range or None, not {self.steps!r}",
            )
            steps = range(*self.steps)
        if steps is not None:
            self._demand(
                len(steps) > 0 and min(steps) >= 0, f"steps {self.steps!r} contain no step"
            )
        return steps

    def _demand(self, holds: bool, relation: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {relation}")

    def _demand_real(
        self, name: str, least: float | None = None, above: float | None = None
    ) -> None:
        value = getattr(self, name)
        self._demand(_is_finite(value), f"{name} must be a number, not {value!r}")
        self._demand(least is None or value >= least, f"{name} {value} is less than {least}")
        self._demand(above is None or value > above, f"{name} {value} is not greater than {above}")

    def _demand_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        self._demand(isinstance(value, Integral), f"{name} must be an integer, not {value!r}")
        self._demand(value >= least, f"{name} {value} is less than {least}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and isfinite(value)

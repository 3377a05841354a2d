"""Attacks that know the honest gradients: how far may a lie go before the aggregator drops it?"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import numpy as np

from horovod_detox.attacks.attack import Attack, Scene, widen
from horovod_detox.vote.groups import Groups


@dataclass(frozen=True)
class ALittleIsEnough(Attack):
    """Send the mean minus z standard deviations, a lie that hides among them (Baruch et al. 2019).

        sent = mean(honest) - z * deviation(honest)

    Mean and deviation are those of the honest copies in each coordinate. None as `z` stands for the
    paper's largest safe factor (`largest_safe_z`). The authors' own experiments send the mean plus
    one deviation, which is `z=-1`.
    Baruch, Baruch, Goldberg, "A little is enough: circumventing defenses for distributed learning",
    NeurIPS 2019.

    >>> honest = np.array([[1.0, 4.0], [3.0, 4.0]])
    >>> ALittleIsEnough(z=1.5).corrupt(Scene(own=honest[0], honest=honest))
    array([0.5, 4. ])
    """

    z: float | None = None
    omniscient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z is not None:
            self._demand_real("z")

    def check(self, groups: Groups) -> None:
        super().check(groups)
        self._factor(groups.world_size, len(self._placed(0, groups)))

    def lie(self, scene: Scene) -> np.ndarray:
        mean, deviation = _moments(scene)
        return mean - self._factor(scene.num_ranks, scene.num_faulty) * deviation

    def _factor(self, num_ranks: int, num_faulty: int) -> float:
        return largest_safe_z(num_ranks, num_faulty) if self.z is None else float(self.z)


def largest_safe_z(num_ranks: int, num_faulty: int) -> float:
    """Return `Φ⁻¹((n - f - s) / (n - f))` with `s = ⌊n/2 + 1⌋ - f` (Baruch et al. 2019, section 3).

    `s` honest ranks beyond the lie make it the median. With few ranks z is 0 or even negative.

    Raises:
        ValueError: when the faulty ranks are a majority by themselves, or n < 3.

    >>> round(largest_safe_z(50, 24), 2)
    1.43
    """
    honest = num_ranks - num_faulty
    supporters = num_ranks // 2 + 1 - num_faulty
    if num_ranks < 3 or supporters < 1:
        raise ValueError(
            f"ALittleIsEnough: z is defined for n >= 3 ranks, f <= n // 2 of them faulty, not for "
            f"n = {num_ranks}, f = {num_faulty}: give z"
        )
    return NormalDist().inv_cdf((honest - supporters) / honest)


@dataclass(frozen=True)
class InnerProduct(Attack):
    """Send `-epsilon` times the honest mean, to turn the update against it (Xie et al. 2019).

        sent = -epsilon * mean(honest)

    A small epsilon passes distance-based rules such as Krum, a large one breaks the mean.
    Xie, Koyejo, Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product
    manipulation", UAI 2019.

    >>> honest = np.array([[1.0, 4.0], [3.0, 4.0]])
    >>> InnerProduct(epsilon=0.5).corrupt(Scene(own=honest[0], honest=honest))
    array([-1., -2.])
    """

    epsilon: float = 0.1
    omniscient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_real("epsilon", above=0)

    def lie(self, scene: Scene) -> np.ndarray:
        mean, _ = _moments(scene)
        return -self.epsilon * mean


@dataclass(frozen=True)
class Mimic(Attack):
    """Send the copy of one honest rank, the `target`-th of them (Karimireddy et al. 2022).

        sent = the gradient of the honest rank `target`

    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing",
    ICLR 2022.

    >>> honest = np.array([[1.0, 4.0], [3.0, 4.0]])
    >>> Mimic(target=1).corrupt(Scene(own=honest[0], honest=honest))
    array([3., 4.])
    """

    target: int = 0
    omniscient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_integer("target", least=0)

    def check(self, groups: Groups) -> None:
        super().check(groups)
        honest = groups.world_size - len(self._placed(0, groups))
        self._demand(self.target < honest, f"target {self.target} of {honest} honest ranks")

    def lie(self, scene: Scene) -> np.ndarray:
        return _honest(scene)[self.target].copy()


@dataclass(frozen=True)
class LineSearch(Attack):
    """Send the lie of a line that takes the update farthest from the honest mean.

    The attacker knows the aggregator and tries it (Shejwalkar and Houmansadr 2021).

    Attributes:
        limit: the largest factor tried.
    """

    limit: float = 100.0
    omniscient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_real("limit", above=0)

    @abstractmethod
    def line(self, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the line starts and its direction, `(d,)` each."""

    def lie(self, scene: Scene) -> np.ndarray:
        aggregate = scene.aggregate
        if aggregate is None:
            raise ValueError(
                f"{type(self).__name__} needs the rule that it attacks: give aggregate="
            )
        mean, deviation = _moments(scene)
        start, direction = self.line(mean, deviation)

        def lie(factor: float) -> np.ndarray:
            return scene.cast(start + factor * direction)

        def harm(factor: float) -> float:
            update = aggregate(lie(factor)).astype(np.float64)
            distance = np.linalg.norm(update - mean)
            return np.inf if np.isnan(distance) else float(distance)

        return lie(most_harmful(harm, self.limit))


@dataclass(frozen=True)
class OptimalALittleIsEnough(LineSearch):
    """Send the mean minus z standard deviations with the most harmful z.

        sent = mean(honest) - z * deviation(honest), z = argmax |update(z) - mean(honest)|

    The attacker knows the aggregator and tries it.
    Shejwalkar, Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and
    defenses for federated learning", NDSS 2021.

    >>> honest = np.array([[1.0, 4.0], [3.0, 4.0]])
    >>> scene = Scene(own=honest[0], honest=honest, aggregate=lambda lie: lie / 3)
    >>> OptimalALittleIsEnough(limit=10.0).corrupt(scene)
    array([-8.,  4.])
    """

    def line(self, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return mean, -deviation


@dataclass(frozen=True)
class OptimalInnerProduct(LineSearch):
    """Send `-epsilon` times the honest mean with the most harmful epsilon.

        sent = -epsilon * mean(honest), epsilon = argmax |update(epsilon) - mean(honest)|

    The attacker knows the aggregator and tries it.
    Shejwalkar, Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and
    defenses for federated learning", NDSS 2021.

    >>> honest = np.array([[1.0, 4.0], [3.0, 4.0]])
    >>> scene = Scene(own=honest[0], honest=honest, aggregate=lambda lie: lie / 3)
    >>> OptimalInnerProduct(limit=10.0).corrupt(scene)
    array([-20., -40.])
    """

    def line(self, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros_like(mean), -mean


def most_harmful(
    harm: Callable[[float], float], limit: float, halvings: int = 12, bisections: int = 6
) -> float:
    """Return a factor in (0, limit] of most harm: try `limit / 2^i`, then bisect around the best.

    Of equally harmful factors the least wins. At most `halvings + 2 bisections` trials.

    >>> round(most_harmful(lambda factor: -abs(factor - 3.0), limit=100.0), 1)
    3.0
    """
    tried = {limit / 2**i: harm(limit / 2**i) for i in reversed(range(halvings))}
    for i in range(1, bisections + 1):
        best = _argmax(tried)
        ratio = 2**0.5**i
        tried |= {x: harm(x) for x in (best / ratio, best * ratio) if x <= limit}
    return _argmax(tried)


def _argmax(tried: dict[float, float]) -> float:
    return max(sorted(tried), key=lambda factor: tried[factor])


def _honest(scene: Scene) -> np.ndarray:
    if scene.honest is None:
        raise ValueError("an omniscient attack needs the honest ranks' gradients")
    return scene.honest


def _moments(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the (population) standard deviation of each coordinate, `(d,)` each."""
    honest = widen(_honest(scene))
    return honest.mean(axis=0), honest.std(axis=0)

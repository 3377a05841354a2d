"""Attacks that know only the rank's own gradients."""

from dataclasses import dataclass

import numpy as np

from horovod_detox.attacks.attack import Attack, Scene, widen


@dataclass(frozen=True)
class Reverse(Attack):
    """Send `-scale` times the own gradient (reverse gradient; DETOX, section 5, uses 100).

        sent = -scale * g

    Rajput, Wang, Charles, Papailiopoulos, "DETOX", NeurIPS 2019, section 5.

    >>> Reverse(scale=100.0).corrupt(Scene(own=np.array([1.0, -2.0])))
    array([-100.,  200.])
    """

    scale: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_real("scale", above=0)

    def lie(self, scene: Scene) -> np.ndarray:
        return -self.scale * widen(scene.own)


@dataclass(frozen=True)
class Constant(Attack):
    """Send one value in every element (DETOX, section 5: -100 for gradients, -1 for signs).

        sent[j] = value

    Rajput, Wang, Charles, Papailiopoulos, "DETOX", NeurIPS 2019, section 5.

    >>> Constant(value=-1.0).corrupt(Scene(own=np.array([1.0, -2.0])))
    array([-1., -1.])
    """

    value: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_real("value")

    def lie(self, scene: Scene) -> np.ndarray:
        return np.full_like(widen(scene.own), self.value)


@dataclass(frozen=True)
class Zero(Attack):
    """Send zeros, as from a buffer that was cleared and never filled.

        sent[j] = 0

    >>> Zero().corrupt(Scene(own=np.array([1.0, -2.0])))
    array([0., 0.])
    """

    def lie(self, scene: Scene) -> np.ndarray:
        return np.zeros_like(scene.own)


@dataclass(frozen=True)
class NaN(Attack):
    """Send NaN in every element.

        sent[j] = NaN

    >>> NaN().corrupt(Scene(own=np.array([1.0, -2.0])))
    array([nan, nan])
    """

    def lie(self, scene: Scene) -> np.ndarray:
        return np.full_like(widen(scene.own), np.nan)


@dataclass(frozen=True)
class Inf(Attack):
    """Send positive infinity in every element.

        sent[j] = infinity

    >>> Inf().corrupt(Scene(own=np.array([1.0, -2.0])))
    array([inf, inf])
    """

    def lie(self, scene: Scene) -> np.ndarray:
        return np.full_like(widen(scene.own), np.inf)


@dataclass(frozen=True)
class Gaussian(Attack):
    """Send noise from N(mean, std²) *instead of* the gradient (Blanchard et al. 2017, section 5).

        sent = mean + std * e, e from N(0, 1)

    This is the field's "Gaussian attack". To add noise to the gradient, use `Noise`.
    Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017, section 5.

    >>> Gaussian(std=10.0).corrupt(Scene(own=np.array([1.0, -2.0]))).round(2)
    array([ 1.26, -1.32])
    """

    std: float = 1.0
    mean: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_real("std", above=0)
        self._demand_real("mean")

    def lie(self, scene: Scene) -> np.ndarray:
        return self.mean + self.std * _standard_normal(scene)


@dataclass(frozen=True)
class Noise(Attack):
    """Send the own gradient *plus* noise from N(0, std²).

        sent = g + std * e, e from N(0, 1)

    >>> Noise(std=0.1).corrupt(Scene(own=np.array([1.0, -2.0]))).round(2)
    array([ 1.01, -2.01])
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_real("std", above=0)

    def lie(self, scene: Scene) -> np.ndarray:
        return widen(scene.own) + self.std * _standard_normal(scene)


@dataclass(frozen=True)
class Stale(Attack):
    """Send the own gradient of `lag` steps ago; while history is shorter, the oldest there is.

        sent = g of step t - lag

    >>> Stale(lag=1).corrupt(Scene(own=np.array([1.0, -2.0]), past=[np.array([3.0, 4.0])]))
    array([3., 4.])
    """

    lag: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_integer("lag", least=1)

    @property
    def memory(self) -> int:
        return self.lag

    def lie(self, scene: Scene) -> np.ndarray:
        known = [*scene.past, scene.own][-1 - self.lag :]
        return known[0].copy()


def _standard_normal(scene: Scene) -> np.ndarray:
    wide = widen(scene.own)
    return scene.rng.standard_normal(wide.shape).astype(wide.dtype)

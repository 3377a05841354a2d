"""Faults as hardware makes them: independent on every rank, some of them tiny."""

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np

from horovod_detox.attacks.attack import Attack, Scene, widen


@dataclass(frozen=True)
class BitFlip(Attack):
    """Flip `count` random bits of the gradient's representation.

        sent = g with `count` bits of its representation inverted

    Attributes:
        count: how many bits, all different.
        bits: the positions in an element to choose from, 0 being the least significant; None: all.

    >>> BitFlip(bits=(63,)).corrupt(Scene(own=np.array([1.0, -2.0])))  # a sign
    array([1., 2.])
    """

    count: int = 1
    bits: tuple[int, ...] | None = None
    colluding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_integer("count", least=1)
        if self.bits is not None:
            self._demand(
                isinstance(self.bits, tuple)
                and all(isinstance(bit, Integral) and bit >= 0 for bit in self.bits)
                and 0 < len(self.bits) == len(set(self.bits)),
                f"bits must be a tuple of different positions, not {self.bits!r}",
            )

    def lie(self, scene: Scene) -> np.ndarray:
        copy = scene.own.copy()
        raw = _raw(copy)
        width = 8 * raw.dtype.itemsize
        bits = range(width) if self.bits is None else self.bits
        room = raw.size * len(bits)
        self._demand(max(bits) < width, f"bits {self.bits}: {scene.own.dtype} has {width}")
        self._demand(self.count <= room, f"count {self.count} is greater than {room} bits")
        places = scene.rng.choice(room, self.count, replace=False)
        elements, chosen = np.divmod(places, len(bits))
        masks = np.array([1 << bit for bit in bits], raw.dtype)[chosen]
        np.bitwise_xor.at(raw, elements, masks)
        return copy


@dataclass(frozen=True)
class ZeroBlock(Attack):
    """Zero a contiguous block at a random place, as a page that never arrived.

        sent[j] = 0 for a <= j < a + length, a at random

    >>> ZeroBlock(bytes=16).corrupt(Scene(own=np.array([1.0, 2.0, 3.0, 4.0])))
    array([1., 2., 0., 0.])
    """

    bytes: int = 4096
    colluding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_integer("bytes", least=1)

    def lie(self, scene: Scene) -> np.ndarray:
        copy = scene.own.copy()
        length = min(-(-self.bytes // copy.dtype.itemsize), copy.size)
        start = scene.rng.integers(copy.size - length + 1)
        copy[start : start + length] = 0
        return copy


@dataclass(frozen=True)
class Stride(Attack):
    """Negate every `every`-th element from a random one on, as one bad lane of a vector unit.

        sent[j] = -g[j] for j = a, a + every, a + 2 every, ..., a at random

    >>> Stride(every=2).corrupt(Scene(own=np.array([1.0, 2.0, 3.0, 4.0])))
    array([ 1., -2.,  3., -4.])
    """

    every: int = 64
    colluding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_integer("every", least=1)

    def lie(self, scene: Scene) -> np.ndarray:
        copy = scene.own.copy()
        lane = slice(scene.rng.integers(min(self.every, copy.size)), None, self.every)
        copy[lane] = -copy[lane]
        return copy


@dataclass(frozen=True)
class Bias(Attack):
    """Send `(1 + relative)` times the own gradient, one ulp off where that would round away.

        sent = (1 + relative) * g

    >>> Bias(relative=0.5).corrupt(Scene(own=np.array([1.0, -2.0])))
    array([ 1.5, -3. ])
    """

    relative: float = 1e-3
    colluding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_real("relative")
        self._demand(self.relative != 0, "relative must not be 0")

    def lie(self, scene: Scene) -> np.ndarray:
        own = scene.own
        copy = scene.cast(widen(own) * (1 + self.relative))
        raw = _raw(copy)
        unmoved = (raw == _raw(own.copy())) & (own != 0) & np.isfinite(own)
        raw[unmoved] = raw[unmoved] + 1 if self.relative > 0 else raw[unmoved] - 1
        return copy


@dataclass(frozen=True)
class Ulp(Attack):
    """Move one random element by one unit in the last place, towards zero, or off it.

        sent[a] = the number next to g[a], a at random

    >>> Ulp().corrupt(Scene(own=np.array([1.0]))).tolist()
    [0.9999999999999999]
    """

    colluding: ClassVar[bool] = False

    def lie(self, scene: Scene) -> np.ndarray:
        copy = scene.own.copy()
        raw, at = _raw(copy), scene.rng.integers(copy.size)
        raw[at] = raw[at] + 1 if copy[at] == 0 else raw[at] - 1
        return copy


@dataclass(frozen=True)
class Random(Attack):
    """Send random bits, as from memory that was never written: huge values, some NaN.

        sent = random bits

    >>> Random().corrupt(Scene(own=np.array([1.0, -2.0], np.float16)))
    array([-3.618e-05, -1.842e+02], dtype=float16)
    """

    colluding: ClassVar[bool] = False

    def lie(self, scene: Scene) -> np.ndarray:
        return scene.rng.integers(256, size=scene.own.nbytes, dtype=np.uint8).view(scene.own.dtype)


def _raw(array: np.ndarray) -> np.ndarray:
    """Return a view of the bits as unsigned integers; sign and magnitude, so ±1 is one ulp."""
    return array.view(f"u{array.dtype.itemsize}")

"""Faults of what a rank holds, not of what it sends."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from horovod_detox.attacks.attack import Attack, Scene

KINDS = ("parameters", "optimizer", "buffers", "random")
"""What a rank holds, see docs/replicas.md."""


@dataclass(frozen=True)
class FlipState(Attack):
    """Flip one random bit of what the rank holds before a step, and send the gradient as it comes.

        held = what the rank holds with one bit inverted

    Attributes:
        of: of what: `parameters`, `optimizer`, `buffers` or `random`, or one of them with a part of
            the names in logs: `parameters/fc.weight`.

    >>> FlipState(of="buffers").flipped(np.array([0, 0]), np.random.default_rng(0))
    array([             0, 17592186044416])
    """

    of: str
    colluding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = str(self.of).partition("/")[0]
        known = ", ".join(KINDS)
        self._demand(
            kind in KINDS,
            f"of {self.of!r} is none of {known}, nor one of them with a name: parameters/fc.weight",
        )

    def lie(self, scene: Scene) -> np.ndarray:
        return scene.own.copy()

    def flipped(self, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return words with one random bit inverted: `(w,) -> (w,)` of int64, w > 0.

        States of random generators are not changed at their ends: there they count how much was
        used, and another number would have them read what is not theirs.
        """
        result = words.copy()
        end = len(words) // 4 if self.of.startswith("random") else 0
        place = rng.integers(64 * end, 64 * (len(words) - end))
        result.view(np.uint64)[place // 64] ^= np.uint64(1 << int(place % 64))
        return result

"""Rules that shorten votes that are too long, or too far from the previous result."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator, check_integer, check_positive
from horovod_detox.aggregators.gram import norms
from horovod_detox.aggregators.mixing import PreAggregator


@dataclass(frozen=True)
class CenteredClipping(Aggregator):
    """Move the previous result by the mean of the clipped differences of the votes from it.

        v <- v + (1 / n) sum over i of (x_i - v) min(1, radius / |x_i - v|), `iterations` times

    The radius must be near the distance of honest votes from their mean: a much larger one clips
    nothing.
    Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> CenteredClipping(radius=5.0)(votes, previous=np.array([2.0, 3.0])).round(2)
    array([3.09, 2.27])
    """

    uses_gram: ClassVar[bool] = True
    uses_previous: ClassVar[bool] = True
    radius: float
    iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "radius", self.radius)
        check_integer(self, "iterations", self.iterations, at_least=1)

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n = len(gram) - 1
        centre = np.eye(1, n + 1, n)[0]
        for _ in range(self.iterations):
            differences = np.eye(n, n + 1) - centre
            squares = np.einsum("ij,jk,ik->i", differences, gram, differences)
            factors = _factors(self.radius, np.sqrt(np.maximum(squares, 0)))
            centre = centre + factors @ differences / n
        return centre[None, :n]


@dataclass(frozen=True)
class Clipping(PreAggregator):
    """Scale votes that are longer than the radius down to it.

        y_i = x_i min(1, radius / |x_i|)

    >>> Clipping(radius=5.0)(np.array([[3.0, 4.0], [30.0, 40.0], [0.0, 1.0]]))
    array([[3., 4.],
           [3., 4.],
           [0., 1.]])
    """

    uses_gram: ClassVar[bool] = True
    uses_origin: ClassVar[bool] = True
    radius: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "radius", self.radius)

    def weights(self, gram: np.ndarray) -> np.ndarray:
        return np.diag(_factors(self.radius, norms(gram)))


@dataclass(frozen=True)
class AdaptiveClipping(PreAggregator):
    """Scale the floor(2 (f / n) (n - f)) longest votes down to the length of the next shorter.

        y_i = x_i min(1, c / |x_i|), c: the length of the longest vote that is not shortened

    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive gradient clipping for robust
    federated learning", ICLR 2025 (ARC).

    >>> AdaptiveClipping(f=1)(np.array([[3.0, 4.0], [30.0, 40.0], [0.0, 1.0]]))
    array([[3., 4.],
           [3., 4.],
           [0., 1.]])
    """

    uses_gram: ClassVar[bool] = True
    uses_origin: ClassVar[bool] = True
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        lengths = norms(gram)
        clipped = 2 * f * (n - f) // n
        return np.diag(_factors(np.sort(lengths)[n - 1 - clipped], lengths))


def _factors(radius: float, lengths: np.ndarray) -> np.ndarray:
    """Return min(1, radius / length) for every length."""
    return np.divide(radius, lengths, out=np.ones_like(lengths), where=lengths > radius)

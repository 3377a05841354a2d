"""Rules that average the n - f votes that look best together."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator
from horovod_detox.aggregators.gram import averaging, squared_distances, squared_norms


@dataclass(frozen=True)
class MDA(Aggregator):
    """Average the n - f votes of least diameter, of several such sets the lexicographically first.

        u = mean of S, the n - f votes with the least max |x_i - x_j| over i, j in S

    The set is found exactly: the least diameter by bisection, each step asking whether f votes
    can be left out so that no pair farther apart remains (a vertex cover).
    El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, "Genuinely distributed Byzantine machine
    learning", PODC 2020 (minimum-diameter averaging).

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> MDA(f=1)(votes)
    array([2.5, 3. ])
    """

    uses_gram: ClassVar[bool] = True
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        distances = squared_distances(gram)
        diameters = np.unique(distances)
        low, high = 0, len(diameters) - 1
        while low < high:
            half = (low + high) // 2
            if coverable(_farther(distances, diameters[half]), (1 << n) - 1, f):
                high = half
            else:
                low = half + 1
        return averaging(_first_subset(_farther(distances, diameters[low]), f), n)


@dataclass(frozen=True)
class FABA(Aggregator):
    """Remove the vote farthest from the mean of the others f times; average what remains.

        f times: S <- S without argmax over i in S of |x_i - mean of S|; u = mean of S

    Xia, Tao, Hao, Li, IJCAI 2019.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> FABA(f=1)(votes)
    array([2.5, 3. ])
    """

    uses_gram: ClassVar[bool] = True
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        distances, remaining = squared_distances(gram), np.arange(n)
        for _ in range(f):
            # The squared distance to the mean is, up to a constant, the mean squared distance.
            spread = np.sort(distances[np.ix_(remaining, remaining)], axis=1).sum(axis=1)
            remaining = np.delete(remaining, spread.argmax())
        return averaging(remaining, n)


@dataclass(frozen=True)
class CGE(Aggregator):
    """Average the n - f votes of least norm (comparative gradient elimination).

        u = mean of the n - f votes of least |x_i|

    Gupta, Liu, Vaidya, "Byzantine fault-tolerant distributed machine learning using
    stochastic gradient descent (SGD) and norm-based comparative gradient elimination", 2020.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> CGE(f=1)(votes)
    array([2.5, 3. ])
    """

    uses_gram: ClassVar[bool] = True
    uses_origin: ClassVar[bool] = True
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        return averaging(squared_norms(gram).argsort(kind="stable")[: n - f], n)


def coverable(neighbours: list[int], alive: int, budget: int) -> bool:
    """Say whether removing `budget` of the alive vertices can remove every edge between them.

    Vertices are bits; `neighbours[i]` is the set of those joined to i by an edge.
    """
    degree, vertex = max(
        ((mask & alive).bit_count(), i) for i, mask in enumerate(neighbours) if alive >> i & 1
    )
    if degree == 0:
        return True
    edges = sum((mask & alive).bit_count() for i, mask in enumerate(neighbours) if alive >> i & 1)
    if edges > 2 * degree * budget:
        return False
    if coverable(neighbours, alive & ~(1 << vertex), budget - 1):
        return True
    around = neighbours[vertex] & alive
    return 1 < degree <= budget and coverable(neighbours, alive & ~around, budget - degree)


def _farther(distances: np.ndarray, diameter: float) -> list[int]:
    """Return for every vote the set of those farther from it than the diameter, as bits."""
    return [sum(1 << int(j) for j in np.flatnonzero(row > diameter)) for row in distances]


def _first_subset(farther: list[int], f: int) -> list[int]:
    """Return the lexicographically first n - f votes of which no two are too far apart."""
    n, chosen = len(farther), []
    alive = (1 << n) - 1
    for i in range(n):
        without = alive & ~farther[i]
        budget = f - (n - without.bit_count())
        if alive >> i & 1 and budget >= 0 and coverable(farther, without, budget):
            chosen.append(i)
            alive = without
        else:
            alive &= ~(1 << i)
    return chosen[: n - f]

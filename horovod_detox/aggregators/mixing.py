"""Pre-aggregators that replace the votes by averages of some of them."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator, check_integer
from horovod_detox.aggregators.gram import squared_distances
from horovod_detox.arrays.blocks import by_block, weighted
from horovod_detox.arrays.namespaces import Vector, Votes


@dataclass(frozen=True)
class PreAggregator(Aggregator):
    """A linear map of n votes to rows, of which at most f are faulty, for a rule to reduce.

    Called by itself it returns the rows: `(n, d) -> (rows(n), d)`.
    """

    def rows(self, n: int) -> int:
        """Return the number of rows that n votes become."""
        return n

    def _apply(self, weights: np.ndarray, values: Votes, previous: Vector | None) -> Votes:
        return by_block(weighted(weights), values, previous, rows=len(weights))

    def _undefined(self, values: Votes) -> Vector:
        rows = self.rows(len(values))
        return by_block(lambda block, before: [block[0] + np.nan] * rows, values, rows=rows)


@dataclass(frozen=True)
class Bucketing(PreAggregator):
    """Shuffle the votes and average s of them at a time; the last bucket may be smaller.

        y_b = mean of the votes x_i in bucket b, ceil(n / s) buckets of a random permutation

    The permutation follows from the seed and the step.
    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing",
    ICLR 2022.

    >>> Bucketing(s=2)(np.array([[1.0], [2.0], [3.0], [4.0]]))
    array([[3.5],
           [1.5]])
    """

    s: int
    seed: int = 0
    step: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "s", self.s, at_least=1)
        check_integer(self, "seed", self.seed, at_least=0)
        check_integer(self, "step", self.step, at_least=0)

    def rows(self, n: int) -> int:
        return -(-n // self.s)

    def at(self, step: int) -> Self:
        return replace(self, step=step)

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n = len(gram) - 1
        order = np.random.default_rng((self.seed, self.step)).random(n).argsort(kind="stable")
        weights = np.zeros((self.rows(n), n))
        weights[np.arange(n) // self.s, order] = 1
        return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class NearestNeighborMixing(PreAggregator):
    """Replace every vote by the mean of the n - f nearest to it, itself included.

        y_i = mean of the n - f votes x_j of least |x_j - x_i|

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing", AISTATS 2023 (NNM).

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> NearestNeighborMixing(f=1)(votes)[:2]
    array([[2.5, 3. ],
           [2.5, 3. ]])
    """

    uses_gram: ClassVar[bool] = True
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        nearest = squared_distances(gram).argsort(axis=1, kind="stable")[:, : n - f]
        weights = np.zeros((n, n))
        np.put_along_axis(weights, nearest, 1 / (n - f), axis=1)
        return weights

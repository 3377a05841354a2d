"""Krum and the rules built on its score."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator, check_integer
from horovod_detox.aggregators.coordinate import middle_ranks
from horovod_detox.aggregators.gram import averaging, squared_distances
from horovod_detox.arrays.blocks import Rows, kernels, mean
from horovod_detox.arrays.namespaces import Vector


@dataclass(frozen=True)
class Krum(Aggregator):
    """Take the vote with the least sum of squared distances to its n - f - 2 nearest others.

        u = x_i of the least score(i) = sum of |x_i - x_j|^2 over the n - f - 2 nearest j

    Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> Krum(f=1)(votes)
    array([2., 3.])
    """

    uses_gram: ClassVar[bool] = True
    bound: ClassVar[tuple[int, int]] = (2, 3)
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        scores = krum_scores(squared_distances(gram), self.faults(len(gram) - 1))
        return averaging([scores.argmin()], len(scores))


@dataclass(frozen=True)
class MultiKrum(Aggregator):
    """Average the m votes with the best Krum scores; m is n - f - 2 if not given.

        u = mean of the m votes x_i of least score(i), as in `Krum`

    Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> MultiKrum(f=1, m=3)(votes)
    array([3.        , 3.33333333])
    """

    uses_gram: ClassVar[bool] = True
    bound: ClassVar[tuple[int, int]] = (2, 3)
    f: int | None = None
    m: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None:
            check_integer(self, "m", self.m, at_least=1)

    def check(self, n: int) -> None:
        super().check(n)
        if self.m is not None and self.m > n:
            raise ValueError(f"MultiKrum averages m = {self.m} votes, but there are only {n}")

    def fit(self, n: int) -> Self:
        rule = super().fit(n)
        return rule if rule.m is None else replace(rule, m=min(rule.m, n))

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        scores = krum_scores(squared_distances(gram), f)
        m = n - f - 2 if self.m is None else self.m
        return averaging(scores.argsort(kind="stable")[:m], n)


@dataclass(frozen=True)
class Bulyan(Aggregator):
    """Select n - 2f votes by repeated Krum; average the values nearest to their median.

        u[j] = mean of the n - 4f selected values s_i[j] with the least |s_i[j] - median(s)[j]|

    Each round moves Krum's choice from the remaining votes to the selection. Then, in every
    coordinate, n - 4f of the selected values are averaged, those nearest to their median; of two
    equally near values the smaller is taken.
    El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in
    Byzantium", ICML 2018.

    >>> votes = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [90.0]])
    >>> Bulyan(f=1)(votes)
    array([3.])
    """

    uses_gram: ClassVar[bool] = True
    bound: ClassVar[tuple[int, int]] = (4, 3)
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        distances, remaining = squared_distances(gram), np.arange(n)
        for _ in range(n - 2 * f):
            scores = krum_scores(distances[np.ix_(remaining, remaining)], f)
            remaining = np.delete(remaining, scores.argmin())
        return np.delete(np.eye(n), remaining, axis=0)

    def combine(self, rows: Rows) -> Vector:
        if not self.f:
            return mean(rows)
        return kernels(rows).trimmed_mean(rows, middle_ranks(len(rows)), len(rows) - 2 * self.f)


def krum_scores(distances: np.ndarray, f: int) -> np.ndarray:
    """Return the sum of the n - f - 2 least distances to others, of each vote: `(n, n) -> (n,)`.

    Bulyan's last rounds would leave none: then one is counted.
    """
    n = len(distances)
    others = distances + np.diag(np.full(n, np.inf))
    return np.sort(others, axis=1)[:, : max(n - f - 2, 1)].sum(axis=1)

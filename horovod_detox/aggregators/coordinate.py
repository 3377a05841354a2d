"""Rules that look at every coordinate by itself."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator
from horovod_detox.arrays.blocks import Rows, kernels, mean
from horovod_detox.arrays.namespaces import Vector


@dataclass(frozen=True)
class Mean(Aggregator):
    """Average the votes, added up in their order; robust to nothing."""

    bound: ClassVar[tuple[int, int]] = (1, 1)

    def max_f(self, n: int) -> int:
        return min(0, n - 1)

    def broken_bound(self, n: int, f: int) -> str:
        return f"Mean stands no faulty vote: {n} votes with f = {f}"

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n = len(gram) - 1
        return np.full((1, n), 1 / n)


@dataclass(frozen=True)
class Median(Aggregator):
    """Take the median of every coordinate, for even n the mean of the two middle values.

    Yin, Chen, Ramchandran, Bartlett, ICML 2018, option I of algorithm 1.
    """

    def combine(self, rows: Rows) -> Vector:
        return kernels(rows).trimmed_mean(rows, middle_ranks(len(rows)))


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Drop the f smallest and the f largest values of every coordinate, average the others.

    Yin, Chen, Ramchandran, Bartlett, ICML 2018, option II of algorithm 1.
    """

    f: int | None = None

    def combine(self, rows: Rows) -> Vector:
        n, f = len(rows), self.faults(len(rows))
        return kernels(rows).trimmed_mean(rows, range(f, n - f)) if f else mean(rows)


@dataclass(frozen=True)
class MeaMed(Aggregator):
    """Average the n - f values of every coordinate that are nearest to their median.

    Of two equally near values the smaller is taken.
    Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018.
    """

    f: int | None = None

    def combine(self, rows: Rows) -> Vector:
        n, f = len(rows), self.faults(len(rows))
        return kernels(rows).trimmed_mean(rows, middle_ranks(n), n - f) if f else mean(rows)


@dataclass(frozen=True)
class Phocas(Aggregator):
    """Average the n - f values of every coordinate that are nearest to their trimmed mean.

    Of two equally near values the smaller is taken.
    Xie, Koyejo, Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent", 2018.
    """

    f: int | None = None

    def combine(self, rows: Rows) -> Vector:
        n, f = len(rows), self.faults(len(rows))
        return kernels(rows).trimmed_mean(rows, range(f, n - f), n - f) if f else mean(rows)


@dataclass(frozen=True)
class SignMajority(Aggregator):
    """Take the sign that most votes have in every coordinate; 0 where they tie.

    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote", ICLR 2019.
    """

    def combine(self, rows: Rows) -> Vector:
        return kernels(rows).sign_majority(rows)


def middle_ranks(n: int) -> range:
    """Return the ranks of the one or two middle values.

    >>> middle_ranks(5), middle_ranks(6)
    (range(2, 3), range(2, 4))
    """
    return range((n - 1) // 2, n // 2 + 1)

"""Rules that look at every coordinate by itself."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator
from horovod_detox.arrays.blocks import Rows, kernels, mean
from horovod_detox.arrays.namespaces import Vector


@dataclass(frozen=True)
class Mean(Aggregator):
    """Average the votes, added up in their order; robust to nothing.

        u = (x_1 + ... + x_n) / n

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> Mean()(votes)
    array([ 20. , -15.6])
    """

    bound: ClassVar[tuple[int, int]] = (1, 1)

    def max_f(self, n: int) -> int:
        return min(0, n - 1)

    def broken_bound(self, n: int, f: int) -> str:
        return f"Mean tolerates no faulty vote: {n} votes with f = {f}"

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n = len(gram) - 1
        return np.full((1, n), 1 / n)


@dataclass(frozen=True)
class Median(Aggregator):
    """Take the median of every coordinate, for even n the mean of the two middle values.

        u[j] = median(x_1[j], ..., x_n[j])

    Yin, Chen, Ramchandran, Bartlett, ICML 2018, option I of algorithm 1.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> Median()(votes)
    array([3., 3.])
    """

    def combine(self, rows: Rows) -> Vector:
        return kernels(rows).trimmed_mean(rows, middle_ranks(len(rows)))


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Drop the f smallest and the f largest values of every coordinate, average the others.

        u[j] = mean of x_(f+1)[j] <= ... <= x_(n-f)[j], the sorted values without f at each end

    Yin, Chen, Ramchandran, Bartlett, ICML 2018, option II of algorithm 1.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> TrimmedMean(f=1)(votes)
    array([3.        , 2.66666667])
    """

    f: int | None = None

    def combine(self, rows: Rows) -> Vector:
        n, f = len(rows), self.faults(len(rows))
        return kernels(rows).trimmed_mean(rows, range(f, n - f)) if f else mean(rows)


@dataclass(frozen=True)
class MeaMed(Aggregator):
    """Average the n - f values of every coordinate that are nearest to their median.

        u[j] = mean of the n - f values x_i[j] with the least |x_i[j] - median[j]|

    Of two equally near values the smaller is taken.
    Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> MeaMed(f=1)(votes)
    array([2.5, 3. ])
    """

    f: int | None = None

    def combine(self, rows: Rows) -> Vector:
        n, f = len(rows), self.faults(len(rows))
        return kernels(rows).trimmed_mean(rows, middle_ranks(n), n - f) if f else mean(rows)


@dataclass(frozen=True)
class Phocas(Aggregator):
    """Average the n - f values of every coordinate that are nearest to their trimmed mean.

        u[j] = mean of the n - f values x_i[j] with the least |x_i[j] - trimmed_mean[j]|

    Of two equally near values the smaller is taken.
    Xie, Koyejo, Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent", 2018.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> Phocas(f=1)(votes)
    array([2.5, 3. ])
    """

    f: int | None = None

    def combine(self, rows: Rows) -> Vector:
        n, f = len(rows), self.faults(len(rows))
        return kernels(rows).trimmed_mean(rows, range(f, n - f), n - f) if f else mean(rows)


@dataclass(frozen=True)
class SignMajority(Aggregator):
    """Take the sign that most votes have in every coordinate; 0 where they tie.

        u[j] = sign(sign(x_1[j]) + ... + sign(x_n[j]))

    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote", ICLR 2019.

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> SignMajority()(votes)
    array([1., 1.])
    """

    def combine(self, rows: Rows) -> Vector:
        return kernels(rows).sign_majority(rows)


def middle_ranks(n: int) -> range:
    """Return the ranks of the one or two middle values.

    >>> middle_ranks(5), middle_ranks(6)
    (range(2, 3), range(2, 4))
    """
    return range((n - 1) // 2, n // 2 + 1)

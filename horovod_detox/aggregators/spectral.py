"""Rules that bound the largest eigenvalue of the covariance of what they average."""

from dataclasses import dataclass
from itertools import chain, combinations
from math import comb
from typing import ClassVar

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator
from horovod_detox.aggregators.gram import averaging

_SUBSETS = 10_000
"""The most subsets that SMEA searches."""
_CHUNK = 256
_LARGE = 1e140
_NO_MASS = 1e-9
"""What rounding leaves of the weight of a copy of the farthest vote."""


@dataclass(frozen=True)
class CAF(Aggregator):
    """Weigh down votes along the top eigenvector of the covariance; keep the mean of least spread.

        weights w_i <- w_i (1 - t_i / max t), t_i = (v . (x_i - mean_w))^2, v: top eigenvector

    All votes start with weight one. While the weights sum to more than n - 2f, the mean is noted
    with the largest eigenvalue of the covariance, and each weight shrinks in proportion to the
    squared distance from the mean along the top eigenvector, to zero for the farthest vote.
    The noted mean with the least eigenvalue is the result.
    Allouah, Guerraoui, Stephan, "Towards trustworthy federated learning with untrusted
    participants", ICML 2025 (covariance bound-agnostic filter).

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> CAF(f=1)(votes).round(2)
    array([2.5, 3. ])
    """

    uses_gram: ClassVar[bool] = True
    f: int | None = None

    def weights(self, gram: np.ndarray) -> np.ndarray:
        votes, n = _moderate(gram[:-1, :-1]), len(gram) - 1
        best, least = np.full(n, 1 / n), np.inf
        masses = np.ones(n)
        while masses.sum() > n - 2 * self.faults(n):
            shares = masses / masses.sum()
            eigenvalue, deviations = _top_component(votes, shares)
            if eigenvalue < least:
                best, least = shares, eigenvalue
            farthest = deviations[masses > 0].max()
            if farthest == 0:
                break
            masses = masses * np.maximum(1 - deviations / farthest, 0)
            masses[masses < _NO_MASS] = 0
        return best[None]


@dataclass(frozen=True)
class SMEA(Aggregator):
    """Average the n - f votes whose covariance has the smallest largest eigenvalue.

        u = mean of S, the n - f votes with the least largest eigenvalue of cov(S)

    The search is exact and so limited to 10,000 subsets; of equal ones the lexicographically
    first is taken.
    Allouah, Guerraoui, Gupta, Pinot, Stephan, "On the privacy-robustness-utility trilemma in
    distributed learning", ICML 2023 (smallest maximum eigenvalue averaging).

    >>> votes = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 3.0], [90.0, -90.0]])
    >>> SMEA(f=1)(votes)
    array([2.5, 3. ])
    """

    uses_gram: ClassVar[bool] = True
    f: int | None = None

    def max_f(self, n: int) -> int:
        bound = super().max_f(n)
        return next((f for f in range(bound, 0, -1) if comb(n, f) <= _SUBSETS), min(bound, 0))

    def broken_bound(self, n: int, f: int) -> str:
        if f <= super().max_f(n):
            return f"SMEA searches at most {_SUBSETS} subsets: {n} votes with f = {f} have more"
        return super().broken_bound(n, f)

    def weights(self, gram: np.ndarray) -> np.ndarray:
        n, f = len(gram) - 1, self.faults(len(gram) - 1)
        votes = _centred(gram[:-1, :-1], np.full(n, 1 / n))
        indices = chain.from_iterable(combinations(range(n), n - f))
        subsets = np.fromiter(indices, int).reshape(-1, n - f)
        bounds = least_eigenvalues(votes, subsets)
        eigenvalues = np.full(len(subsets), np.inf)
        order = bounds.argsort(kind="stable")
        for start in range(0, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            if bounds[chunk[0]] > eigenvalues.min() * (1 + 1e-9):
                break
            eigenvalues[chunk] = largest_eigenvalues(votes, subsets[chunk])
        first = np.flatnonzero(eigenvalues <= eigenvalues.min() * (1 + 1e-9))[0]
        return averaging(subsets[first], n)


def _moderate(gram: np.ndarray) -> np.ndarray:
    """Return a Gram matrix whose squares do not overflow: divided by a power of two, if need be."""
    largest = gram.diagonal().max()
    return gram if largest < _LARGE else np.ldexp(gram, -np.frexp(largest)[1])


def _centred(gram: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the Gram matrix of the votes seen from their mean with these shares."""
    projected = gram @ shares
    return gram - projected[:, None] - projected + shares @ projected


def _top_component(votes: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the covariance's largest eigenvalue and the votes' squared distances along it.

    The covariance of the votes, `(d, d)`, shares its eigenvalues with an `(n, n)` matrix.
    """
    centred, roots = _centred(votes, shares), np.sqrt(shares)
    eigenvalues, vectors = np.linalg.eigh(roots[:, None] * centred * roots)
    direction = roots * vectors[:, -1]
    length = direction @ centred @ direction
    if length <= 0:
        return 0.0, np.zeros(len(shares))
    return eigenvalues[-1], (centred @ direction) ** 2 / length


def least_eigenvalues(votes: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Return lower bounds of the largest eigenvalues of the subsets' covariances.

    In any direction the variance is at most the largest eigenvalue; tried are the principal
    directions of all votes. The votes are `(n, n)` scalar products, the subsets `(s, m)` indices.
    """
    eigenvalues, vectors = np.linalg.eigh(votes)
    used = eigenvalues > 1e-12 * eigenvalues[-1]
    positions = vectors[:, used] * np.sqrt(eigenvalues[used])
    bounds = np.zeros(len(subsets))
    for axis in positions.T:
        np.maximum(bounds, axis[subsets].std(axis=1), out=bounds)
    rounding = 1e-13 * np.sqrt(eigenvalues[-1].clip(0))
    return (bounds * (1 - 1e-9) - rounding).clip(0) ** 2


def largest_eigenvalues(votes: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Return the largest eigenvalue of the covariance of each subset: `(s, m) -> (s,)`."""
    grams = votes[subsets[:, :, None], subsets[:, None, :]]
    means = grams.mean(axis=2, keepdims=True)
    grams = grams - means - means.transpose(0, 2, 1) + means.mean(axis=1, keepdims=True)
    return np.linalg.eigvalsh(grams)[:, -1] / subsets.shape[1]

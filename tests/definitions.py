"""The aggregation rules, each in a few slow lines: what the fast ones are compared with.

`RULES[name](values, f, **parameters)` and `PRE_RULES[...]` take float64 votes `(n, d)`.
"""

from itertools import combinations

import numpy as np


def mean(x, f):
    return x.mean(axis=0)


def median(x, f):
    return np.median(x, axis=0)


def trimmed_mean(x, f):
    return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


def nearest_mean(x, centre, kept):
    columns = [
        sorted(sorted(column), key=lambda value, c=c: abs(value - c))[:kept]
        for column, c in zip(x.T.tolist(), centre.tolist(), strict=True)
    ]
    return np.array([np.mean(column) for column in columns])


def meamed(x, f):
    return nearest_mean(x, np.median(x, axis=0), len(x) - f)


def phocas(x, f):
    return nearest_mean(x, trimmed_mean(x, f), len(x) - f)


def sign_majority(x, f):
    return np.sign(np.sign(x).sum(axis=0))


def spread(x, y):
    return ((x - y) ** 2).sum()


def krum_order(x, f):
    n = len(x)
    scores = [
        sum(sorted(spread(x[i], x[j]) for j in range(n) if j != i)[: max(n - f - 2, 1)])
        for i in range(n)
    ]
    return np.argsort(scores, kind="stable")


def krum(x, f):
    return x[krum_order(x, f)[0]]


def multi_krum(x, f, m=None):
    return x[krum_order(x, f)[: m or len(x) - f - 2]].mean(axis=0)


def bulyan(x, f):
    remaining, selected = list(range(len(x))), []
    while len(selected) < len(x) - 2 * f:
        selected.append(remaining.pop(krum_order(x[remaining], f)[0]))
    chosen = x[selected]
    return nearest_mean(chosen, np.median(chosen, axis=0), len(chosen) - 2 * f)


def geometric_median(x, f):
    point = x.mean(axis=0)
    for _ in range(1000):
        pulls = 1 / np.maximum(np.sqrt(((x - point) ** 2).sum(axis=1)), 1e-9)
        point = pulls @ x / pulls.sum()
    return point


def total_distance(x, point):
    return np.sqrt(((x - point) ** 2).sum(axis=1)).sum()


def mda(x, f):
    apart = [[spread(a, b) for b in x] for a in x]

    def diameter(subset):
        return max((apart[i][j] for i, j in combinations(subset, 2)), default=0)

    subsets = combinations(range(len(x)), len(x) - f)
    return x[list(min(subsets, key=diameter))].mean(axis=0)


def centered_clipping(x, f, radius, iterations=1, previous=0.0):
    centre = np.zeros(x.shape[1]) + previous
    for _ in range(iterations):
        moves = [(v - centre) * min(1, radius / (np.linalg.norm(v - centre) or 1)) for v in x]
        centre = centre + np.mean(moves, axis=0)
    return centre


def covariance(x, weights):
    centre = weights @ x / weights.sum()
    return centre, (weights[:, None] * (x - centre)).T @ (x - centre) / weights.sum()


def caf(x, f):
    weights, found = np.ones(len(x)), [(np.inf, x.mean(axis=0))]
    while weights.sum() > len(x) - 2 * f:
        centre, matrix = covariance(x, weights)
        eigenvalues, vectors = np.linalg.eigh(matrix)
        found.append((eigenvalues[-1], centre))
        deviations = ((x - centre) @ vectors[:, -1]) ** 2
        farthest = deviations[weights > 0].max()
        weights = weights * np.maximum(1 - deviations / farthest, 0)
    return min(found, key=lambda pair: pair[0])[1]


def smea(x, f):
    def largest(subset):
        chosen = x[list(subset)]
        return np.linalg.eigvalsh(covariance(chosen, np.ones(len(chosen)))[1])[-1]

    return x[list(min(combinations(range(len(x)), len(x) - f), key=largest))].mean(axis=0)


def faba(x, f):
    for _ in range(f):
        from_mean = len(x) * x - x.sum(axis=0)
        x = np.delete(x, np.argmax((from_mean**2).sum(axis=1)), axis=0)
    return x.mean(axis=0)


def cge(x, f):
    return x[np.argsort((x**2).sum(axis=1), kind="stable")[: len(x) - f]].mean(axis=0)


def nearest_neighbor_mixing(x, f):
    rows = []
    for i in range(len(x)):
        others = sorted(set(range(len(x))) - {i}, key=lambda j: (spread(x[i], x[j]), j))
        rows.append(x[[i, *others][: len(x) - f]].mean(axis=0))
    return np.array(rows)


def clipping(x, f, radius):
    return np.array([v * min(1, radius / (np.linalg.norm(v) or 1)) for v in x])


def adaptive_clipping(x, f):
    norms = sorted(np.linalg.norm(x, axis=1), reverse=True)
    return clipping(x, f, norms[int(np.floor(2 * f * (len(x) - f) / len(x)))])


RULES = {
    rule.__name__: rule
    for rule in (
        mean, median, trimmed_mean, geometric_median, krum, multi_krum, bulyan, meamed, phocas,
        mda, centered_clipping, caf, smea, faba, cge, sign_majority,
    )
}  # fmt: skip
PRE_RULES = {rule.__name__: rule for rule in (nearest_neighbor_mixing, clipping, adaptive_clipping)}

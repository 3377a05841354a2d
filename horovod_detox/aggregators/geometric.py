"""The geometric median."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator
from horovod_detox.aggregators.gram import averaging, majority_radius, squared_distances

_TOLERANCE = 1e-6
_ITERATIONS = 100


@dataclass(frozen=True)
class GeometricMedian(Aggregator):
    """Take the point with the least sum of distances to the votes, by smoothed Weiszfeld.

        u = argmin over y of |x_1 - y| + ... + |x_n - y|

    The scale of the honest votes is the radius of the smallest ball around a vote that holds a
    majority: 1e-6 of it is the smoothing and the length of the last step. The iteration starts
    at the mean of this majority: from the mean of all, colluders who send 1e38 would leave it
    far from its end after 100 steps.
    Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", 2019.

    >>> votes = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0], [90.0, -90.0]])
    >>> GeometricMedian()(votes)
    array([0., 0.])
    """

    uses_gram: ClassVar[bool] = True

    def weights(self, gram: np.ndarray) -> np.ndarray:
        votes, distances = gram[:-1, :-1], squared_distances(gram)
        n, scale = len(votes), np.sqrt(majority_radius(distances))
        inmost = np.sort(distances, axis=1)[:, n // 2].argmin()
        weights = averaging(distances[inmost].argsort(kind="stable")[: n // 2 + 1], n)[0]
        if scale == 0:  # a strict majority coincides: this is the geometric median
            return averaging([inmost], n)
        for _ in range(_ITERATIONS):
            projected = votes @ weights
            squares = votes.diagonal() - 2 * projected + weights @ projected
            pulls = 1 / np.maximum(np.sqrt(np.maximum(squares, 0)), _TOLERANCE * scale)
            step = pulls / pulls.sum() - weights
            weights = weights + step
            if step @ votes @ step <= (_TOLERANCE * scale) ** 2:
                break
        return weights[None]

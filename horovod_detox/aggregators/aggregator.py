"""What every aggregation rule is: weights from the Gram matrix, then a column-wise combine."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np

from horovod_detox.aggregators.gram import gram_matrix
from horovod_detox.arrays.blocks import Rows, by_block, finite_rows, weighted
from horovod_detox.arrays.namespaces import Vector, Votes, dtype_name, like, view

Gram = Callable[[Rows, Vector | None], np.ndarray]


class TooFewVotes(ValueError):
    """So few votes are left that the rule cannot work, whatever f is."""


@dataclass(frozen=True)
class Aggregator:
    """A rule that reduces n votes, of which up to f are faulty, to one vector.

    A rule defines `weights`, `combine` or both. The weights turn the n votes into m rows, each an
    affine combination of the votes and a reference point; combine reduces the rows, every column
    by itself. So a rule can work on slices of the columns, given the Gram matrix of all of them.

    A rule with a parameter f takes None for as many faulty votes as it can tolerate.
    """

    uses_gram: ClassVar[bool] = False
    """Whether the weights depend on the votes; else they only depend on how many there are."""
    uses_previous: ClassVar[bool] = False
    """Whether the reference point is the previous result; else it is the origin."""
    uses_origin: ClassVar[bool] = False
    """Whether the weights depend on the reference being the origin."""
    bound: ClassVar[tuple[int, int]] = (2, 1)
    """`(a, b)`: the rule needs n >= a f + b votes."""

    def __post_init__(self) -> None:
        if self.given_f is not None:
            check_integer(self, "f", self.given_f, at_least=0)

    @property
    def given_f(self) -> int | None:
        """The parameter f; None if it was not given or the rule has none."""
        return getattr(self, "f", None)

    def max_f(self, n: int) -> int:
        """Return how many of n votes may be faulty; negative if n are too few for the rule."""
        factor, constant = self.bound
        return (n - constant) // factor

    def broken_bound(self, n: int, f: int) -> str:
        """Say in one line why n votes are too few for f faulty ones."""
        factor, constant = self.bound
        return (
            f"{type(self).__name__} needs n >= {factor}f + {constant}: "
            f"{n} votes with f = {f} (needs {factor * f + constant})"
        )

    def faults(self, n: int) -> int:
        """Return the f that the rule reckons with among n votes."""
        return self.max_f(n) if self.given_f is None else self.given_f

    def check(self, n: int) -> None:
        """Raise a ValueError with the relation that fails unless the rule can work on n votes."""
        f = self.given_f or 0
        if f > self.max_f(n):
            raise ValueError(self.broken_bound(n, f))

    def fit(self, n: int) -> Self:
        """Return the rule for n votes, with f set and lowered to what they can tolerate.

        Raises:
            TooFewVotes: when the rule cannot work on n votes at all.
        """
        if self.max_f(n) < 0:
            raise TooFewVotes(self.broken_bound(n, 0))
        f = min(self.faults(n), self.max_f(n))
        return replace(self, f=f) if self._takes_f and f != self.given_f else self

    def with_f(self, f: int, n: int) -> Self:
        """Return the rule prepared for f faulty votes among n.

        Raises:
            ValueError: when the rule cannot tolerate as many, or was given a smaller f.
        """
        if f > self.max_f(n):
            raise ValueError(self.broken_bound(n, f))
        if self.given_f is None:
            return replace(self, f=f) if self._takes_f else self
        if f > self.given_f:
            raise ValueError(
                f"{self} does not tolerate {f} faulty votes among {n}: give it f = {f}"
            )
        return self

    def default_f(self, f: int) -> Self:
        """Return the rule with this f where none was given."""
        return replace(self, f=f) if self._takes_f and self.given_f is None else self

    def at(self, step: int) -> Self:
        """Return the rule for this step; it differs between steps if it draws random numbers."""
        return self

    def weights(self, gram: np.ndarray) -> np.ndarray:
        """Return the weights of the votes in each row: `(n + 1, n + 1) -> (m, n)`.

        What a row lacks to one is the weight of the reference. Rules without `uses_gram` may only
        look at the shape of the matrix.
        """
        return np.eye(len(gram) - 1)

    def combine(self, rows: Rows) -> Vector:
        """Reduce the rows, every column by itself: `(m, b) -> (b,)`."""
        (row,) = rows
        return row

    def reduce(
        self, values: Rows, gram: Gram = gram_matrix, previous: Vector | None = None
    ) -> Vector:
        """Aggregate finite votes or a slice of their columns: n times `(d,)` to `(d,)`.

        Args:
            values: NumPy arrays or tensors on their device; the rule is fitted to n.
            gram: returns the Gram matrix of the whole votes, given `values` and the reference;
                with slices, sum that of the slices.
            previous: `(d,)`, the finite previous result; None at the start.
        """
        rule, n = self.fit(len(values)), len(values)
        previous = previous if rule.uses_previous else None
        weights = rule.weights(
            gram(values, previous) if rule.uses_gram else np.zeros((n + 1, n + 1))
        )
        return rule._apply(weights, values, previous)

    def __call__(self, values: Votes, previous: Vector | None = None) -> Vector:
        """Aggregate n votes: `(n, d) -> (d,)` of the same kind, element type and device.

        Votes that are not finite are left out; if these are more than half, the result is NaN.
        A previous result that is not finite is ignored.

        Raises:
            ValueError: when the rule cannot work on n votes, or on the finite ones among them.
            TypeError: when the votes are not floating-point numbers.
        """
        votes = view(values)
        if votes.ndim != 2:
            raise ValueError(f"votes must have the shape (n, d), not {tuple(votes.shape)}")
        if "float" not in dtype_name(votes):
            raise TypeError(f"votes must be floating-point numbers, not {dtype_name(votes)}")
        self.check(len(votes))
        finite = finite_rows(votes)
        if 2 * finite.sum() < len(finite):
            return like(values, self._undefined(votes))
        if not finite.all():
            votes = votes[np.flatnonzero(finite).tolist()]
        if previous is not None:
            centre = view(previous)
            if centre.shape != votes.shape[1:]:
                raise ValueError(f"previous has the shape {tuple(centre.shape)}, not (d,)")
            previous = centre if finite_rows(centre[None]).all() else None
        return like(values, self.reduce(votes, previous=previous))

    def _apply(self, weights: np.ndarray, values: Rows, previous: Vector | None) -> Vector:
        mix = weighted(weights)
        return by_block(lambda *block: self.combine(mix(*block)), values, previous)

    def _undefined(self, values: Votes) -> Vector:
        return by_block(lambda block, before: block[0] + np.nan, values)

    @property
    def _takes_f(self) -> bool:
        return any(field.name == "f" for field in fields(self))


def check_integer(rule: Any, name: str, value: Any, at_least: int) -> None:
    """Raise a ValueError unless the parameter of the rule is an integer of at least this."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < at_least:
        raise ValueError(
            f"{type(rule).__name__}: {name} = {value!r} must be an integer of at least {at_least}"
        )


def check_positive(rule: Any, name: str, value: Any) -> None:
    """Raise a ValueError unless the parameter of the rule is a finite positive number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < np.inf:
        raise ValueError(f"{type(rule).__name__}: {name} = {value!r} must be a positive number")


def combine_flags(rule: Aggregator, *stages: Aggregator) -> None:
    """Set what a composed rule uses from what its stages use.

    Raises:
        ValueError: when the stages need different reference points.
    """
    for flag in ("uses_gram", "uses_previous", "uses_origin"):
        object.__setattr__(rule, flag, any(getattr(stage, flag) for stage in stages))
    if rule.uses_previous and rule.uses_origin:
        needing = [stage for stage in stages if stage.uses_origin]
        raise ValueError(
            f"{needing[0]} measures votes from the origin and cannot be combined with a rule "
            "that keeps the previous result as its centre"
        )

"""The two-level rule of DETOX: an inner rule inside buckets of votes, an outer one over them."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator, Gram, TooFewVotes, combine_flags
from horovod_detox.aggregators.coordinate import Mean
from horovod_detox.aggregators.gram import gram_matrix
from horovod_detox.aggregators.mixing import PreAggregator
from horovod_detox.arrays.blocks import Rows, by_block, weighted, working_dtype
from horovod_detox.arrays.namespaces import Vector, Votes, dtype_name, namespace


@dataclass(frozen=True)
class Hierarchy(Aggregator):
    """Reduce every bucket of votes by the inner rule, then the bucket results by the outer one.

        u = outer(inner(bucket 0), ..., inner(bucket b - 1)), bucket c = {x_i: i mod b = c}

    Vote i is in bucket i % buckets; without `buckets` every vote is its own. A bucket of a single
    vote is that vote. If the inner rule tolerates t faulty votes in the smallest bucket, it takes
    t + 1 to capture a bucket, so f of them capture at most f // (t + 1).
    Rajput, Wang, Charles, Papailiopoulos, "DETOX", NeurIPS 2019.

    Raises:
        ValueError: when a rule cannot be used at its place.
    """

    inner: Aggregator
    outer: Aggregator
    buckets: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.inner, PreAggregator | Hierarchy):
            raise ValueError(f"{self.inner} cannot be an inner aggregator")
        if isinstance(self.outer, PreAggregator):
            raise ValueError(f"{self.outer} is a pre-aggregator: put a rule after it")
        if self.buckets is not None and self.buckets < 1:
            raise ValueError(f"buckets = {self.buckets}: there must be at least one")
        combine_flags(self, self.inner, self.outer)

    def max_f(self, n: int) -> int:
        buckets = self._count(n)
        if not self._works(n, buckets):
            return -1
        return (self.outer.max_f(buckets) + 1) * (self._inner_faults(n) + 1) - 1

    def broken_bound(self, n: int, f: int) -> str:
        buckets, t = self._count(n), self._inner_faults(n)
        if buckets == n:
            return self.outer.broken_bound(n, f)
        for size in _sizes(n, buckets):
            if self.inner.max_f(size) < 0:
                return f"{n} votes in {buckets} buckets: {self.inner.broken_bound(size, 0)}"
        return (
            f"{n} votes in {buckets} buckets, each corrupted by {t + 1} of {f} faulty votes: "
            f"{self.outer.broken_bound(buckets, f // (t + 1))}"
        )

    def check(self, n: int) -> None:
        buckets = self._count(n)
        if self.buckets is not None and self.buckets > n:
            raise ValueError(f"buckets = {self.buckets}: there are only {n} votes")
        try:
            for size in _sizes(n, buckets):
                self.inner.check(size)
            self.outer.check(buckets)
        except ValueError as error:
            raise ValueError(f"{n} votes in {buckets} buckets: {error}") from None

    def fit(self, n: int) -> Self:
        """Return the rule for n votes: with fewer buckets if needed, and an outer rule fitted."""
        for buckets in range(self._count(n), 0, -1):
            if self._works(n, buckets):
                return replace(self, outer=self.outer.fit(buckets), buckets=buckets)
        raise TooFewVotes(self.broken_bound(n, 0))

    def prepared(self, n: int, f: int | None = None) -> Self:
        """Return the rule for n votes, f of them faulty: with fewer buckets if needed.

        Args:
            n: the number of votes.
            f: None: as many as were given to its rules, or as it can tolerate.

        Raises:
            TooFewVotes: when so few votes cannot tolerate these.
        """
        for buckets in range(self._count(n), 0, -1):
            rule = self if buckets == n else replace(self, buckets=buckets)
            if rule._stands_given(n, buckets) and (f or 0) <= rule.max_f(n):
                return rule if f is None else rule.with_f(f, n)
        if f:
            raise TooFewVotes(self.broken_bound(n, f))
        raise TooFewVotes(self.outer.broken_bound(self._count(n), self.outer.given_f or 0))

    def with_f(self, f: int, n: int) -> Self:
        if f > self.max_f(n):
            raise ValueError(self.broken_bound(n, f))
        buckets, inner = self._count(n), self.inner
        for size in _sizes(n, buckets):
            inner = inner.with_f(min(f, self._inner_faults(n)), size)
        rule = replace(self, inner=inner)
        captured = f // (rule._inner_faults(n) + 1)
        return replace(rule, outer=self.outer.with_f(captured, buckets))

    def at(self, step: int) -> Self:
        return replace(self, inner=self.inner.at(step), outer=self.outer.at(step))

    def reduce(
        self, values: Rows, gram: Gram = gram_matrix, previous: Vector | None = None
    ) -> Vector:
        rule = self.fit(len(values))
        if rule.buckets == len(values):
            return rule.outer.reduce(values, gram, previous)
        results = rule._reduce_buckets(values, gram, previous if rule.inner.uses_previous else None)
        with np.errstate(over="ignore"):
            result = rule.outer.reduce(results, gram, previous)
            return namespace(result).cast(result, dtype_name(values[0]))

    def _reduce_buckets(self, values: Rows, gram: Gram, previous: Vector | None) -> Votes:
        """Reduce every bucket: n times `(d,)` to `(buckets, d)`, with one Gram matrix for all."""
        n, buckets = len(values), self._count(len(values))
        matrix = gram(values, previous) if self.inner.uses_gram else np.zeros((n + 1, n + 1))
        members = [list(range(bucket, n, buckets)) for bucket in range(buckets)]
        inner = [self.inner.fit(len(votes)) if len(votes) > 1 else Mean() for votes in members]
        mixes = [
            weighted(rule.weights(_restrict(matrix, votes)))
            for rule, votes in zip(inner, members, strict=True)
        ]

        def combine(block: Rows, before: Vector | None) -> list[Vector]:
            return [
                rule.combine(mix([block[i] for i in votes], before))
                for rule, mix, votes in zip(inner, mixes, members, strict=True)
            ]

        return by_block(combine, values, previous, rows=buckets, dtype=working_dtype(values))

    def _count(self, n: int) -> int:
        return n if self.buckets is None else min(self.buckets, n)

    def _works(self, n: int, buckets: int) -> bool:
        return self.outer.max_f(buckets) >= 0 and all(
            self.inner.max_f(size) >= 0 for size in _sizes(n, buckets)
        )

    def _stands_given(self, n: int, buckets: int) -> bool:
        """Return whether both rules work on n votes with the f that they were given."""
        return (self.outer.given_f or 0) <= self.outer.max_f(buckets) and all(
            (self.inner.given_f or 0) <= self.inner.max_f(size) for size in _sizes(n, buckets)
        )

    def _inner_faults(self, n: int) -> int:
        """Return t, the faulty votes that the inner rule tolerates in the smallest bucket."""
        size = n // max(self._count(n), 1)
        return 0 if size <= 1 else min(self.inner.faults(size), self.inner.max_f(size))


def _sizes(n: int, buckets: int) -> list[int]:
    """Return the sizes of the buckets that need the inner rule, ascending."""
    return [size for size in sorted({n // buckets, -(-n // buckets)}) if size > 1] if n else []


def _restrict(gram: np.ndarray, votes: list[int]) -> np.ndarray:
    """Return the Gram matrix of some of the votes and the reference."""
    kept = [*votes, len(gram) - 1]
    return gram[np.ix_(kept, kept)]

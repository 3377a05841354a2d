"""A pre-aggregator in front of a rule."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from horovod_detox.aggregators.aggregator import Aggregator, TooFewVotes, combine_flags
from horovod_detox.aggregators.gram import compose
from horovod_detox.aggregators.hierarchy import Hierarchy
from horovod_detox.aggregators.mixing import PreAggregator
from horovod_detox.arrays.blocks import Rows
from horovod_detox.arrays.namespaces import Vector


@dataclass(frozen=True)
class Chain(Aggregator):
    """Apply a pre-aggregator to the votes, then a rule to the rows it returns.

    The weights of both are multiplied, so one Gram matrix and one pass over the votes are enough.
    A stage without f takes that of the other stage, or else as many as both can tolerate.

    Raises:
        ValueError: when one stage needs the origin as reference, the other the previous result.
    """

    pre: PreAggregator
    rule: Aggregator

    def __post_init__(self) -> None:
        if not isinstance(self.pre, PreAggregator):
            raise ValueError(f"{self.pre} is not a pre-aggregator")
        if isinstance(self.rule, PreAggregator | Hierarchy):
            raise ValueError(f"{self.rule} cannot be the rule after a pre-aggregator")
        combine_flags(self, self.pre, self.rule)

    @property
    def given_f(self) -> int | None:
        given = [f for f in (self.pre.given_f, self.rule.given_f) if f is not None]
        return min(given, default=None)

    def max_f(self, n: int) -> int:
        return min(self.pre.max_f(n), self.rule.max_f(self.pre.rows(n)))

    def broken_bound(self, n: int, f: int) -> str:
        if f > self.pre.max_f(n):
            return self.pre.broken_bound(n, f)
        return self.rule.broken_bound(self.pre.rows(n), f)

    def check(self, n: int) -> None:
        self.pre.check(n)
        self.rule.check(self.pre.rows(n))

    def fit(self, n: int) -> Self:
        rows = self.pre.rows(n)
        if self.max_f(n) < 0:
            raise TooFewVotes(self.broken_bound(n, 0))
        f = self.given_f
        if f is None:
            # Before a rule that tolerates no faults, such as the mean, this stage is all there is.
            f = self.max_f(n) or self.pre.max_f(n)
        chain = self.default_f(f)
        return replace(self, pre=chain.pre.fit(n), rule=chain.rule.fit(rows))

    def default_f(self, f: int) -> Self:
        return replace(self, pre=self.pre.default_f(f), rule=self.rule.default_f(f))

    def with_f(self, f: int, n: int) -> Self:
        rows = self.pre.rows(n)
        return replace(self, pre=self.pre.with_f(f, n), rule=self.rule.with_f(f, rows))

    def at(self, step: int) -> Self:
        return replace(self, pre=self.pre.at(step), rule=self.rule.at(step))

    def weights(self, gram: np.ndarray) -> np.ndarray:
        weights = self.pre.weights(gram)
        return self.rule.weights(compose(gram, weights)) @ weights

    def combine(self, rows: Rows) -> Vector:
        return self.rule.combine(rows)

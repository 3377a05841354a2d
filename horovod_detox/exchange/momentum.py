"""Running means of the groups' votes, which a rule may be given in place of the votes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from horovod_detox.arrays.blocks import by_block, kernels, working_dtype
from horovod_detox.arrays.namespaces import Vector

Slice = tuple[int, int]
"""The words, `(start, stop)`, of a copy."""
Means = Mapping[Slice, Mapping[int, Vector]]
"""By slice and group: `(d,)` in float32, or in float64 if the votes are."""


@dataclass(frozen=True)
class Momentum:
    """What one exchange makes of the means: `m <- beta m + (1 - beta) v`, at first `m = v`.

    Honest votes differ from step to step, and a lie that hides in these differences leads away
    when it is repeated. Their means differ less. Karimireddy, He, Jaggi, "Learning from history
    for Byzantine robust optimization", ICML 2021, algorithm 2, where each worker sends its mean;
    here whoever aggregates the votes keeps them, so that votes are taken on the gradients' bits.

    Attributes:
        beta: between 0 and 1.
        before: the means after the last exchange; never written to.
        words: the slice whose means are asked for.
    """

    beta: float
    before: Means
    words: Slice

    def cut(self, start: int, stop: int) -> "Momentum":
        """Return the momentum of a slice of these words."""
        first = self.words[0]
        return replace(self, words=(first + start, first + stop))

    def advance(self, votes: Mapping[int, Vector]) -> dict[int, Vector]:
        """Return the means with these votes in them: `(d,)` each, in the same order.

        Args:
            votes: finite, `(d,)` each, by group.
        """
        before = self.before.get(self.words, {})
        return {group: self._mean(before.get(group), vote) for group, vote in votes.items()}

    def _mean(self, mean: Vector | None, vote: Vector) -> Vector:
        rows, shares = (
            ([vote], [1.0]) if mean is None else ([mean, vote], [self.beta, 1 - self.beta])
        )
        return by_block(
            lambda block, _: kernels(block).weighted_sum(block, shares),
            rows,
            dtype=working_dtype(rows),
        )


def updated(before: Means, new: Means) -> Means:
    """Return all means after an exchange; groups that had no vote keep theirs.

    >>> updated({(0, 4): {0: 1.0, 1: 2.0}}, {(0, 4): {1: 3.0}, (4, 8): {0: 5.0}})
    {(0, 4): {0: 1.0, 1: 3.0}, (4, 8): {0: 5.0}}
    """
    return {words: {**before.get(words, {}), **new.get(words, {})} for words in {**before, **new}}

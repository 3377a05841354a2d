"""Running means of the groups' votes, which a rule may be given in place of the votes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from horovod_detox.aggregators.columns import by_block, kernels, working_dtype

Slice = tuple[int, int]
"""The words, `(start, stop)`, of a copy."""
Means = Mapping[Slice, Mapping[int, Any]]
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
    _after: dict[Slice, Mapping[int, Any]] = field(default_factory=dict)

    def cut(self, start: int, stop: int) -> "Momentum":
        """Return the momentum of a slice of these words; `after` tells that of all slices."""
        first = self.words[0]
        return replace(self, words=(first + start, first + stop))

    def advance(self, votes: Mapping[int, Any]) -> list[Any]:
        """Return the means with these votes in them: n times `(d,)`, in the same order.

        An exchange may call it again, as votes are replaced or left out: the last call counts.

        Args:
            votes: finite, `(d,)` each, by group.
        """
        before = self.before.get(self.words, {})
        after = {group: self._mean(before.get(group), vote) for group, vote in votes.items()}
        self._after[self.words] = after
        return list(after.values())

    def after(self) -> Means:
        """Return all means after this exchange; groups that had no vote keep theirs."""
        return {
            words: {**self.before.get(words, {}), **self._after.get(words, {})}
            for words in {**self.before, **self._after}
        }

    def _mean(self, mean: Any | None, vote: Any) -> Any:
        rows, shares = (
            ([vote], [1.0]) if mean is None else ([mean, vote], [self.beta, 1 - self.beta])
        )
        return by_block(
            lambda block, _: kernels(block).weighted_sum(block, shares),
            rows,
            dtype=working_dtype(rows),
        )

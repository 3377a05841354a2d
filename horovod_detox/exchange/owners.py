"""What the owners of slices do for all: they aggregate their columns and share the results."""

from collections.abc import Sequence

import numpy as np

from horovod_detox.aggregators import Aggregator
from horovod_detox.arrays.namespaces import Words
from horovod_detox.exchange.aggregation import Columns, add_up, aggregate_votes
from horovod_detox.exchange.collectives import Collectives, Handle
from horovod_detox.exchange.cut import Part
from horovod_detox.exchange.evidence import Accusation, Accused
from horovod_detox.exchange.momentum import Means
from horovod_detox.exchange.witnesses import majority

GATHERED_WORDS = 1 << 19
"""Parts of up to so many words, 4 MiB, are gathered at once."""
GATHERED_LAST = 1 << 21
"""And the last, for which a step waits, up to so many: 16 MiB.

Of all parts it would be too much: Horovod copies those that it finds in its queue together.
"""
GATHERED_SLICE = 1 << 18
"""And so many words of each owner, 2 MiB: up to there it is faster than a broadcast by each."""


def with_accusations(accusations: Sequence[Accusation], facts: np.ndarray) -> np.ndarray:
    """Return what a rank tells: its accusations, then facts."""
    numbers = [number for each in accusations for number in each]
    return np.concatenate([np.array([len(accusations), *numbers], np.int64), facts])


def apart(told: Sequence[np.ndarray]) -> tuple[set[Accusation], list[np.ndarray]]:
    """Return the accusations of all ranks, and the facts of each.

    >>> accused = [Accusation(0, 1, 2, 3)]
    >>> apart([with_accusations([], np.array([7])), with_accusations(accused, np.array([8]))])
    ({Accusation(part=0, sender=1, slice=2, accuser=3)}, [array([7]), array([8])])
    """
    width = len(Accusation._fields)
    stops = [1 + width * int(facts[0]) for facts in told]
    found = {
        Accusation(*numbers)
        for facts, stop in zip(told, stops, strict=True)
        for numbers in facts[1:stop].reshape(-1, width).tolist()
    }
    return found, [facts[stop:] for facts, stop in zip(told, stops, strict=True)]


def aggregate_slices(
    collectives: Collectives,
    rule: Aggregator | None,
    parts: Sequence[Part],
    columns: Sequence[Columns],
    results: Sequence[Words],
    holders: np.ndarray,
    accusations: Sequence[Accusation] = (),
) -> tuple[Means, set[int]]:
    """Compute the slices that this rank holds; return new means, and who erred in a Gram matrix.

    Args:
        collectives: of the p ranks.
        rule: fitted to the votes; None: the update is NaN.
        parts: what is computed.
        columns: the votes on the slices that this rank holds, of one part after another.
        results: `(w,)` words of each, written to.
        holders: `(1 + w, p)`: who holds each slice of a part, its owner first.
        accusations: of this rank.

    Raises:
        Accused: on every rank, when one has an accusation: of what it received no Gram matrix is
            to be made.
    """
    wrong: set[int] = set()
    held, p = holders.shape
    # By part and slice, how many blocks there are; and room for as many of each.
    counts = np.array([[len(blocks) for blocks in part.blocks] for part in parts])
    of_slice = np.arange(counts.max()) < counts[..., None]
    mine = of_slice[:, np.argmax(holders == collectives.rank, axis=1)]

    def total(grams: np.ndarray) -> np.ndarray:
        upper = np.triu_indices(grams.shape[-1])  # they are symmetric
        words = np.zeros((*mine.shape, len(upper[0])))
        words[mine] = grams[:, *upper]
        told = with_accusations(accusations, words.view(np.int64).ravel())
        messages = collectives.allgather_words("grams", told, results[0][:0]).wait()
        found, gathered = apart([message.facts for message in messages])
        if found:
            raise Accused(found)
        by_part = np.stack(gathered).reshape(p, len(parts), held, -1)
        true, liars = majority(by_part.swapaxes(1, 2).reshape(p, held, -1), holders)
        wrong.update(liars)
        # From slice, part and block of the slice to the order of the words.
        in_order = true.view(np.float64).reshape(p, len(parts), -1, len(upper[0])).swapaxes(0, 1)
        numbers = in_order[of_slice]
        of_blocks = np.empty((len(numbers), *grams.shape[1:]))
        of_blocks[:, *upper] = of_blocks[:, *upper[::-1]] = numbers
        return add_up(of_blocks)

    means = aggregate_votes(rule, columns, results, total)
    return means, wrong


def share_slices(collectives: Collectives, part: Part, update: Words, facts: np.ndarray) -> Handle:
    """Let every owner's slice of a part be on its way to all, and facts of every rank beside it.

    Args:
        collectives: of the p ranks.
        part: which words.
        update: `(w,)` words, in which this rank's slice is and those of the others will be.
        facts: `(n,)` of int64, for all.

    Returns:
        what to wait for: it returns the facts by rank.
    """
    name = f"update{part.name}"
    start, stop = part.slices[collectives.rank]
    limit = GATHERED_LAST if part.stop == len(update) else GATHERED_WORDS
    if part.stop - part.start <= min(limit, GATHERED_SLICE * collectives.size):
        return _Gathered(collectives.allgather_words(name, facts, update[start:stop]), part, update)
    broadcasts = [
        collectives.broadcast(f"{name}.{owner}", update[start:stop], owner)
        for owner, (start, stop) in enumerate(part.slices)
    ]
    return _Broadcast(collectives.allgather_words(f"{name}.facts", facts, update[:0]), broadcasts)


class _Gathered:
    """The slices under way, as messages."""

    def __init__(self, messages: Handle, part: Part, update: Words) -> None:
        self._messages, self._part, self._update = messages, part, update

    def is_done(self) -> bool:
        return self._messages.is_done()

    def wait(self) -> list[np.ndarray]:
        messages = self._messages.wait()
        # This rank's own, too: all ranks are to hold what was sent, even if it was not meant.
        for (start, stop), message in zip(self._part.slices, messages, strict=True):
            self._update[start:stop] = message.words
        return [message.facts for message in messages]


class _Broadcast:
    """The slices under way, in place, and the facts beside them."""

    def __init__(self, facts: Handle, broadcasts: Sequence[Handle]) -> None:
        self._facts, self._broadcasts = facts, broadcasts

    def is_done(self) -> bool:
        return self._facts.is_done() and all(handle.is_done() for handle in self._broadcasts)

    def wait(self) -> list[np.ndarray]:
        for handle in self._broadcasts:
            handle.wait()
        return [message.facts for message in self._facts.wait()]

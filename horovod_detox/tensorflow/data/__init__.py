"""Which elements of a tf.data pipeline a rank trains on."""

import logging
from collections.abc import Iterator
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_detox.exchange.sharing import share
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.data.dealing import even, words
from horovod_detox.tensorflow.data.pipelines import differences

log = logging.getLogger("horovod_detox")


def shard(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Deal the elements to the groups: the same inside a group, disjoint across groups.

    All ranks call this. Shuffle after it, with `seed_group` called before; or before it, with a
    seed that is the same on every rank. Groups get equally many elements where their number is
    known, see `even`.

    Raises:
        ValueError: on every rank, when the dataset was shuffled before in an order that is not
            the same on all ranks, or has fewer elements than there are groups.
    """
    seeds = [_seeds(shuffled) for shuffled in _shuffles(dataset)]
    everyones = share(context.collectives("detox.shard"), "seeds", seeds)
    unseeded = any(not any(pair) for pair in seeds)
    if unseeded or any(theirs != seeds for theirs in everyones):
        raise ValueError(
            "the dataset was shuffled in an order that differs between ranks, so that the groups' "
            "shares would overlap: shuffle after shard(), or give shuffle() a seed and call "
            "seed_group() later"
        )
    groups = context.num_groups()
    dealt, rest = even(dataset, groups)
    if rest:
        _warn(words(rest, groups))
    if context.group_size() > 1:
        for difference in differences(dataset):
            _warn(difference)
    return dealt.shard(groups, context.group())


def _warn(text: str) -> None:
    """Say something once, on rank 0."""
    told = context.session().told
    if hvd.rank() == 0 and text not in told:
        told.add(text)
        log.warning("%s", text)


def _shuffles(dataset: Any) -> Iterator[Any]:
    """Yield every shuffle that a dataset is made from."""
    if hasattr(dataset, "_seed2") and hasattr(dataset, "_buffer_size"):
        yield dataset
    for source in dataset._inputs():
        yield from _shuffles(source)


def _seeds(shuffled: Any) -> list[int]:
    """Return the two seeds of a shuffle; both are zero when it has none."""
    return [int(tf.get_static_value(seed)) for seed in (shuffled._seed, shuffled._seed2)]

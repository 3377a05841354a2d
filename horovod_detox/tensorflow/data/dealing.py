"""Shares of equal size: a group with less would leave the others waiting for its batches."""

import tensorflow as tf


def even(dataset: tf.data.Dataset, shares: int) -> tuple[tf.data.Dataset, int]:
    """Leave out the last elements that cannot be dealt evenly; return how many these are.

    To repeat some elements instead, as samplers do, the pipeline would have to be opened a second
    time in each epoch: buffers would be filled again, random numbers drawn again. Where nobody
    knows how many elements there are, as after `filter`, all stay.

    Raises:
        ValueError: when there are fewer elements than shares.

    >>> dataset, rest = even(tf.data.Dataset.range(45), 2)
    >>> int(dataset.cardinality()), rest
    (44, 1)
    >>> whole = tf.data.Dataset.range(44)
    >>> even(whole, 2)[0] is whole
    True
    """
    elements = int(dataset.cardinality())
    rest = elements % shares if elements >= 0 else 0
    if 0 <= elements < shares:
        raise ValueError(f"{elements} elements cannot be dealt to {shares} groups")
    return (dataset.take(elements - rest), rest) if rest else (dataset, 0)


def words(rest: int, groups: int) -> str:
    """Say that elements are left out.

    >>> words(1, 2)
    'the last element is left out, so that 2 groups get equally many'
    """
    which = "element is" if rest == 1 else f"{rest} elements are"
    return f"the last {which} left out, so that {groups} groups get equally many"

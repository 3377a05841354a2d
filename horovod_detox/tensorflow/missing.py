"""Gradients that some ranks have not, as their batches left variables out."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from horovod_detox.config import Plan
from horovod_detox.exchange.control import ParametersDiffer
from horovod_detox.packing.layout import without_path

Named = dict[str, tuple[Any, Any]]
"""Gradients, which may be None, and variables, by name."""
ROWS = " (rows)"
"""The end of the name under which a sparse gradient travels."""


def wire_name(name: str, gradient: Any) -> str:
    """Return the name under which a gradient travels, which says if it is sparse."""
    return name + ROWS if isinstance(gradient, tf.IndexedSlices) else name


def completed(mine: Named, error: ParametersDiffer, plan: Plan) -> Named:
    """Return what all ranks exchange, the same on each: zero for a gradient that others have.

    Those count that most ranks have of more groups than faulty ranks can capture.

    Args:
        mine: the gradients of this rank.
        error: tells which the ranks have.
        plan: groups, and how many faulty ranks can capture.

    Raises:
        ParametersDiffer: on every rank, when the parameters differ in something else.
    """
    having: dict[str, set[int]] = {}
    entries: dict[str, Sequence[Any]] = {}
    for rank, gradients in enumerate(error.lists):
        for name, *kind in gradients:
            if entries.setdefault(without_path(name), kind) != kind:
                raise error
            having.setdefault(without_path(name), set()).add(rank)
    wanted = {
        name.removesuffix(ROWS): name.endswith(ROWS)
        for name, ranks in having.items()
        if plan.groups.with_most_of(ranks) > plan.captured
    }
    return {
        name: (_zero(variable, in_rows) if gradient is None else gradient, variable)
        for name, (gradient, variable) in mine.items()
        if (in_rows := wanted.get(without_path(name))) is not None
    }


def _zero(variable: Any, in_rows: bool) -> Any:
    shape, dtype = tf.TensorShape(variable.shape), tf.as_dtype(variable.dtype)
    if not in_rows:
        return tf.zeros(shape, dtype)
    no_rows, no_indices = tf.zeros([0, *shape[1:]], dtype), tf.zeros([0], tf.int64)
    return tf.IndexedSlices(no_rows, no_indices, tf.shape(variable, tf.int64))

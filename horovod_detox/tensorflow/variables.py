"""TensorFlow's and Keras 3's variables: from the root to all ranks."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.exchange.sharing import share
from horovod_detox.packing.layout import difference
from horovod_detox.tensorflow.collectives import in_time
from horovod_detox.tensorflow.context import context

SCOPE, WHAT = "detox", "broadcast_variables"
on_broadcast: list[Callable[[list[Any]], None]] = []
"""Are told which variables are the same on all ranks."""


def native(variable: Any) -> Any:
    """Return the `tf.Variable` inside a Keras variable, or what is none as it is."""
    return variable.value if isinstance(getattr(variable, "value", None), tf.Variable) else variable


def name_of(variable: Any, position: int) -> str:
    """Name a variable: its position, and its path without the numbers of Keras.

    >>> class Kernel:
    ...     path = "sequential_2/dense_5/kernel"
    >>> name_of(Kernel, 3)
    '3 sequential/dense/kernel'
    """
    name = getattr(variable, "path", None) or getattr(variable, "name", None) or "source"
    return f"{position} {re.sub(r'(_[0-9]+)?(:[0-9]+)?(?=/|$)', '', name)}"


def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int,
    process_set: Any = hvd.global_process_set,
    inplace: bool = False,
) -> Any:
    """Overwrite variables by those of the root: `tf.Variable` or Keras 3's, eagerly.

    The arguments are those of `horovod.tensorflow.broadcast_variables`. Ranks must have
    the same variables: the same positions, shapes, dtypes and last words of the names. Keras makes
    the rest of a name from what else a rank has built or loaded.

    Args:
        variables: in the same order on every rank of the set.
        root_rank: the rank whose variables are sent.
        process_set: the ranks that take part.
        inplace: accepted, without effect.

    Raises:
        RanksDisagree: on every rank, when ranks have different variables.
        ExchangeTimeout: when some rank does not take part.
    """
    natives = [native(variable) for variable in variables]
    if not tf.executing_eagerly():
        return hvd.broadcast_variables(natives, root_rank, process_set, inplace)
    collectives = context.collectives(SCOPE, process_set)
    lists = share(collectives, WHAT, [_described(variable) for variable in natives])
    if differ := difference(lists):
        raise RanksDisagree(f"the variables to broadcast differ between ranks: {differ}")

    @tf.function
    def assign() -> None:
        for i, variable in enumerate(natives):
            name = f"{SCOPE}.{WHAT}.{i}"
            received = hvd.broadcast(variable, root_rank, name=name, process_set=process_set)
            variable.assign(received)

    in_time(assign, WHAT, collectives)
    for tell in on_broadcast:
        tell(natives)


def _described(variable: tf.Variable) -> list[Any]:
    """Return the name of a variable, of which all but the last word counts as its path, and so on.

    The paths of an optimizer's variables have underscores: "adam/sequential_dense_kernel_velocity".
    """
    name = re.sub(r"(_[0-9]+)?(:[0-9]+)?$", "", variable.name)
    path, _, word = name.replace("_", "/").rpartition("/")
    return [f"{path}/{word}", variable.shape.as_list(), variable.dtype.name]

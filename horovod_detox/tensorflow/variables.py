"""TensorFlow's and Keras 3's variables: from the root to all ranks."""

from collections.abc import Iterable
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf


def native(variable: Any) -> Any:
    """Return the `tf.Variable` inside a Keras variable, or what is none as it is."""
    return variable.value if isinstance(getattr(variable, "value", None), tf.Variable) else variable


def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int,
    process_set: Any = hvd.global_process_set,
    inplace: bool = False,
) -> Any:
    """Overwrite variables by those of the root: `tf.Variable` or Keras 3's, in eager mode.

    The arguments are those of `horovod.tensorflow.broadcast_variables`.
    """
    natives = [native(variable) for variable in variables]
    return hvd.broadcast_variables(natives, root_rank, process_set, inplace)

"""Everything of `horovod.keras`, for Keras 3, with DETOX in the place of allreduce."""

from typing import Any

import horovod.tensorflow as _hvd

from horovod_detox.tensorflow import keras as _keras
from horovod_detox.tensorflow.keras import *  # noqa: F403
from horovod_detox.tensorflow.keras import callbacks as callbacks
from horovod_detox.tensorflow.keras import elastic as elastic


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = _hvd.Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = _hvd.Average,
    num_groups: int = 0,
    groups: Any = None,
    **kwargs: Any,
) -> Any:
    """Turn an optimizer into one that steps with the robust aggregate of all groups' gradients.

    The arguments are those of `horovod.keras.DistributedOptimizer` 0.28, and, by name, the further
    ones of `horovod_detox.tensorflow.keras.DistributedOptimizer`.
    """
    return _keras.DistributedOptimizer(
        optimizer,
        name,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        gradient_predivide_factor,
        op,
        num_groups=num_groups,
        groups=groups,
        **kwargs,
    )

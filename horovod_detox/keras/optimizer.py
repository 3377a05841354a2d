"""Keras 3's optimizers, with the arguments of horovod.keras."""

from typing import Any

import horovod.tensorflow as hvd

from horovod_detox.tensorflow.keras import optimizer as keras_optimizer


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = hvd.Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = hvd.Average,
    num_groups: int = 0,
    groups: Any = None,
    **kwargs: Any,
) -> Any:
    """Turn an optimizer into one that steps with the robust aggregate of all groups' gradients.

    The arguments are those of `horovod.keras.DistributedOptimizer` 0.28, and, by name, the further
    ones of `horovod_detox.tensorflow.keras.DistributedOptimizer`.
    """
    return keras_optimizer.DistributedOptimizer(
        optimizer,
        name,
        compression=compression,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        op=op,
        num_groups=num_groups,
        groups=groups,
        **kwargs,
    )

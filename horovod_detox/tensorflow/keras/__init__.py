"""Everything of `horovod.tensorflow.keras`, for Keras 3, with DETOX in the place of allreduce."""

from typing import Any

import horovod.tensorflow as _hvd
import keras as _keras
from horovod.tensorflow.keras import *  # noqa: F403

from horovod_detox.attacks import Attack as _Attack
from horovod_detox.tensorflow import broadcast_variables as broadcast_variables
from horovod_detox.tensorflow import fault_report as fault_report
from horovod_detox.tensorflow import group as group
from horovod_detox.tensorflow import group_rank as group_rank
from horovod_detox.tensorflow import group_size as group_size
from horovod_detox.tensorflow import init as init
from horovod_detox.tensorflow import num_groups as num_groups
from horovod_detox.tensorflow import on_fault as on_fault
from horovod_detox.tensorflow import optimizer as _optimizer
from horovod_detox.tensorflow import seed_group as seed_group
from horovod_detox.tensorflow import shard as shard
from horovod_detox.tensorflow import shutdown as shutdown
from horovod_detox.tensorflow.backend import require_tensorflow as _require_tensorflow
from horovod_detox.tensorflow.keras import callbacks as callbacks
from horovod_detox.tensorflow.keras import elastic as elastic

_require_tensorflow()


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = _hvd.Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = _hvd.Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = _hvd.global_process_set,
    scale_local_gradients: bool = True,
    *,
    attack: _Attack | None = None,
) -> Any:
    """Turn an optimizer into one that steps with the robust aggregate of all groups' gradients.

    The arguments are those of `horovod.tensorflow.keras.DistributedOptimizer` 0.28, told in
    `horovod_detox.tensorflow.DistributedOptimizer`.
    """
    return _optimizer.DistributedOptimizer(
        optimizer,
        name,
        compression=compression,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        op=op,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
        num_groups=num_groups,
        groups=groups,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
        attack=attack,
    )


def PartialDistributedOptimizer(
    optimizer: Any, *args: Any, local_layers: Any = None, **kwargs: Any
) -> Any:
    """Turn an optimizer into one like `DistributedOptimizer`, but for the weights of some layers.

    Args:
        optimizer, *args, **kwargs: as for `DistributedOptimizer`.
        local_layers: a Keras layer, or several, whose gradients stay on this rank.
    """
    distributed = DistributedOptimizer(optimizer, *args, **kwargs)
    return _optimizer.keep_local(distributed, local_layers)


def load_model(
    filepath: Any,
    custom_optimizers: Any = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Any = _hvd.Compression.none,
    legacy_opts: bool = False,
    **kwargs: Any,
) -> Any:
    """Load a saved Keras model and distribute the optimizer that it was compiled with.

    Args:
        filepath: of the file.
        custom_optimizers: classes of optimizers that Keras does not know.
        custom_objects: by name, as for `keras.models.load_model`.
        compression: as for `DistributedOptimizer`.
        legacy_opts: accepted, without effect.
        **kwargs: as for `DistributedOptimizer`.
    """
    known = {cls.__name__: cls for cls in custom_optimizers or ()} | (custom_objects or {})
    model: Any = _keras.models.load_model(filepath, custom_objects=known)
    if model.optimizer is not None:
        DistributedOptimizer(model.optimizer, compression=compression, **kwargs)
    return model

"""Keras 3's optimizers and saved models, with the arguments of horovod.tensorflow.keras."""

from typing import Any

import horovod.tensorflow as hvd
import keras

from horovod_detox.attacks import Attack
from horovod_detox.tensorflow import optimizer as tensorflow_optimizer


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = hvd.Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = hvd.Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = hvd.global_process_set,
    scale_local_gradients: bool = True,
    *,
    attack: Attack | None = None,
) -> Any:
    """Turn an optimizer into one that steps with the robust aggregate of all groups' gradients.

    The arguments are those of `horovod.tensorflow.keras.DistributedOptimizer` 0.28, with
    the meanings that they have in `horovod_detox.tensorflow.DistributedOptimizer`.
    """
    return tensorflow_optimizer.DistributedOptimizer(
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
    return tensorflow_optimizer.keep_local(distributed, local_layers)


def load_model(
    filepath: Any,
    custom_optimizers: Any = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Any = hvd.Compression.none,
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
    model: Any = keras.models.load_model(filepath, custom_objects=known)
    if model.optimizer is not None:
        DistributedOptimizer(model.optimizer, compression=compression, **kwargs)
    return model

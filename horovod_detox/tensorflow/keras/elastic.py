"""The states of horovod.tensorflow.keras.elastic, for Keras 3, and its callbacks."""

from horovod.tensorflow.keras.elastic import CommitStateCallback as CommitStateCallback
from horovod.tensorflow.keras.elastic import UpdateBatchStateCallback as UpdateBatchStateCallback
from horovod.tensorflow.keras.elastic import UpdateEpochStateCallback as UpdateEpochStateCallback
from horovod.tensorflow.keras.elastic import run as run

from horovod_detox.tensorflow.elastic import TensorFlowKerasState as KerasState

__all__ = [
    "CommitStateCallback",
    "KerasState",
    "UpdateBatchStateCallback",
    "UpdateEpochStateCallback",
    "run",
]

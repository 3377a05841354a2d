"""The states of horovod.tensorflow.keras.elastic, for Keras 3, and its callbacks."""

from horovod.tensorflow.keras.elastic import CommitStateCallback as CommitStateCallback
from horovod.tensorflow.keras.elastic import UpdateBatchStateCallback as UpdateBatchStateCallback
from horovod.tensorflow.keras.elastic import UpdateEpochStateCallback as UpdateEpochStateCallback

from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.tensorflow.elastic import TensorFlowKerasState as TensorFlowKerasState
from horovod_detox.tensorflow.elastic import run as run

KerasState = TensorFlowKerasState

__all__ = [
    "CommitStateCallback",
    "KerasState",
    "TensorFlowKerasState",
    "UpdateBatchStateCallback",
    "UpdateEpochStateCallback",
    "run",
]
__getattr__ = _fall_through(__name__)

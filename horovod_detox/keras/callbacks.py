"""`horovod.keras.callbacks`, for Keras 3."""

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.tensorflow.keras.callbacks import *  # noqa: F403

__getattr__ = fall_through(__name__)

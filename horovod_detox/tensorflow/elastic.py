"""The states of horovod.tensorflow.elastic, for TensorFlow 2 and Keras 3."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.common.elastic import ObjectState, run_fn
from horovod.common.exceptions import HorovodInternalError

from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.variables import broadcast_variables, native


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function on a state as Horovod does; after a reset the ranks agree anew on settings."""

    @wraps(func)
    def attempt(state: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return func(state, *args, **kwargs)
        except tf.errors.UnknownError as error:  # what Horovod's operations in a function raise
            if "Horovod" not in error.message:
                raise
            raise HorovodInternalError(error) from error

    return run_fn(attempt, context.reset)


class TensorFlowState(ObjectState):
    """Variables that are saved, restored and broadcast together with some attributes.

    Args:
        variables: of TensorFlow or Keras 3.
        session: None; accepted, as TensorFlow 2 has none.
        kwargs: further attributes of the state, picklable.
    """

    def __init__(
        self, variables: Sequence[Any] | None = None, session: None = None, **kwargs: Any
    ) -> None:
        self._variables = list(variables or [])
        self._save_variables()
        super().__init__(bcast_object=hvd.broadcast_object, get_rank=hvd.rank, **kwargs)

    @property
    def variables(self) -> list[Any]:
        """Return the variables as they are now."""
        return self._variables

    def save(self) -> None:
        """Keep the present values."""
        self._save_variables()
        super().save()

    def restore(self) -> None:
        """Return to the values kept."""
        for variable, value in self._saved:
            variable.assign(value)
        super().restore()

    def sync(self) -> None:
        """Take over the root's values, and keep them."""
        broadcast_variables(self.variables, root_rank=0)
        self._save_variables()
        super().sync()

    def _save_variables(self) -> None:
        natives = [native(variable) for variable in self.variables]
        self._saved = [(variable, tf.identity(variable)) for variable in natives]


class TensorFlowKerasState(TensorFlowState):
    """A Keras 3 model and its optimizer, saved, restored and broadcast with some attributes.

    Args:
        model: built.
        optimizer: None: that with which the model was compiled.
        backend: None; accepted.
        kwargs: further attributes of the state, picklable.

    Raises:
        ValueError: when the model is not built yet.
    """

    def __init__(
        self, model: Any, optimizer: Any = None, backend: Any = None, **kwargs: Any
    ) -> None:
        if not model.built:
            raise ValueError("Model must be built first. Run `model.build(input_shape)`.")
        self.model = model
        self.optimizer = optimizer or model.optimizer
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(model.trainable_variables)
        super().__init__(**kwargs)

    @property
    def variables(self) -> list[Any]:
        """Return the variables of the model and of the optimizer as they are now."""
        optimizer = self.optimizer.variables if self.optimizer is not None else []
        return [*self.model.variables, *optimizer]


__getattr__ = _fall_through(__name__)

"""Keras optimizers with an `apply` of their own, as those around others: they get the update."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import keras
import tensorflow as tf

from horovod_detox.tensorflow.gradients import GradientExchange


def has_own_apply(optimizer: Any) -> bool:
    """Return whether a Keras optimizer does not apply gradients as Keras itself does."""
    return type(optimizer).apply is not keras.optimizers.SGD.apply


class ExchangeBeforeApply:
    """Exchanges the gradients that an optimizer is given before it applies them.

    Args:
        optimizer: of Keras 3; its `apply` is replaced on this one instance.
        exchange: turns gradients into the update.

    Attributes:
        models: those that train with it by now.
    """

    def __init__(self, optimizer: Any, exchange: GradientExchange) -> None:
        self.models: WeakSet[Any] = WeakSet()
        self._optimizer, self._exchange = optimizer, exchange
        self._own_apply = exchange.counted(optimizer.apply)
        self._exchanged = False
        optimizer.apply = self._exchange_and_apply

    def exchange_before_scaling(self, scaler: Any, gradients: Any, variables: Any) -> list[Any]:
        """Return the update for a LossScaleOptimizer, which takes it to be its gradients."""
        return self._exchange(list(gradients), list(variables or scaler._trainable_variables))

    def step_with_update(self, step: Callable[[], None]) -> None:
        """Call `step()`, which applies an update that was exchanged already."""
        self._exchanged = True
        try:
            step()
        finally:
            self._exchanged = False

    def _exchange_and_apply(self, grads: Any, trainable_variables: Any = None) -> None:
        if self._exchanged:
            self._own_apply(grads, trainable_variables)
            return
        optimizer = self._optimizer
        variables: Sequence[Any] = list(trainable_variables or optimizer._trainable_variables)
        if not optimizer.built:  # not inside of a condition, as it makes variables
            optimizer.build(variables)
        update = self._exchange(list(grads), variables)
        is_skipped = self._exchange.is_skipped
        if is_skipped is None:
            self._own_apply(update, variables)
        else:
            tf.cond(is_skipped, lambda: None, lambda: self._own_apply(update, variables))

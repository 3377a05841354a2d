"""What is replaced in classes of Keras, once a process, as optimizers alone cannot see to it.

The replaced methods do as before for optimizers that are not distributed.
"""

from typing import Any

import keras

from horovod_detox.tensorflow.fit import fit_together
from horovod_detox.tensorflow.replacing import replace_method


def replace_methods() -> None:
    """Replace them, unless that was done."""
    replace_method(keras.optimizers.LossScaleOptimizer, "apply", _exchange_before_scaling)
    replace_method(keras.Model, "make_train_function", _trace_anew)
    replace_method(keras.Model, "fit", fit_together)


def _exchange_before_scaling(
    apply: Any, optimizer: Any, grads: Any, trainable_variables: Any = None
) -> None:
    """Have a LossScaleOptimizer exchange before it looks for overflows.

    It skips the inner optimizer's step, with the exchange in it, where it finds an overflow; a rank
    that skips alone would leave the others waiting. `compile` makes it by itself, under the policy
    mixed_float16; so the class is what can be changed.
    """
    detox = getattr(optimizer.inner_optimizer, "detox", None)
    if detox is None:
        return apply(optimizer, grads, trainable_variables)
    update = detox.exchange_before_scaling(optimizer, grads, trainable_variables)
    detox.step_with_update(lambda: apply(optimizer, update, trainable_variables))


def _trace_anew(make: Any, model: Any, force: bool = False) -> Any:
    """Have a model whose optimizer was distributed after a first `fit` make its step anew.

    Keras would go on with the step that was traced before, in which there is no exchange.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    detox = getattr(optimizer, "detox", None)
    if detox is not None and model not in detox.models:
        detox.models.add(model)
        force = True
    return make(model, force)

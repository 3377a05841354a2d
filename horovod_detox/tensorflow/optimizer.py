"""Keras 3's optimizers with DETOX between the gradients and the step."""

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from horovod_detox.attacks import Attack
from horovod_detox.frontend.reduction import Reduction
from horovod_detox.tensorflow.backend import require_tensorflow
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.epochs import Team
from horovod_detox.tensorflow.gradients import GradientExchange, scaled
from horovod_detox.tensorflow.keras_classes import replace_methods
from horovod_detox.tensorflow.own_apply import ExchangeBeforeApply, has_own_apply
from horovod_detox.tensorflow.replicas import held
from horovod_detox.tensorflow.tape import local_weights
from horovod_detox.vote.work import Tally


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    use_locking: bool = False,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = hvd.Compression.none,
    sparse_as_dense: bool = False,
    backward_passes_per_step: int = 1,
    op: Any = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = hvd.global_process_set,
    scale_local_gradients: bool = True,
    *,
    attack: Attack | None = None,
) -> Any:
    """Turn an optimizer into one that steps with the robust aggregate of all groups' gradients.

    The arguments are those of `horovod.tensorflow.DistributedOptimizer` 0.28, with these meanings.
    The optimizer keeps its class, is saved and loaded as before, and works in `model.fit`, through
    `apply_gradients` and `apply`, eagerly and in a tf.function. Gradients are clipped after the
    exchange.

    Args:
        optimizer: of Keras 3, or a `tf.compat.v1.train.Optimizer`; it is changed and returned.
        name: a new name of the optimizer; None: keep it.
        use_locking, device_dense, device_sparse: accepted, without effect.
        compression: one of `Compression`, or of your own: element by element, and deterministic.
        op: Average, or Sum: the average times the number of groups.
        gradient_predivide_factor, num_groups, groups: accepted, without effect.
        process_set: the ranks that train together; groups are formed among them.
        sparse_as_dense: return dense updates for `tf.IndexedSlices`, which always travel densely.
        scale_local_gradients: divide the gradients of local layers by the number of groups.
        backward_passes_per_step: gradients are summed locally over so many calls before they are
            exchanged, by Keras's gradient accumulation.
        average_aggregated_gradients: average them over these calls instead of summing them up.
        attack: the fault to rehearse, the same on every rank; None: HOROVOD_DETOX_ATTACK.

    Raises:
        TypeError: for other optimizers.
        ValueError: for arguments that Horovod refuses, and for what cannot work, with the reason.
    """
    reduction = Reduction(
        hvd=hvd,
        compression=compression,
        backward_passes_per_step=backward_passes_per_step,
        op=op,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        process_set=process_set,
        attack=attack,
    )
    is_keras = not isinstance(optimizer, tf.compat.v1.train.Optimizer)
    tally, steps = Tally(type(optimizer).__name__, steps=None), None
    if is_keras:
        steps = tf.Variable(tf.constant(0, tf.int64), trainable=False)
        tally.steps, tally.count_steps = 0, lambda: int(steps)
    engines = context.engines(process_set, tally, attack)
    factor = reduction.factor(len(engines.plan.groups)) if engines else 1
    engine = None

    def models() -> Iterable[Any]:
        return getattr(optimizer, "inner_optimizer", optimizer).detox.models

    if engines:
        engine = engines.make_for_gradients(
            factor,
            is_keras,
            lambda: exchange.weights(),
            held(lambda: exchange.variables, optimizer, models) if is_keras else None,
        )
    exchange = GradientExchange(
        reduction,
        engines.plan if engines else None,
        (lambda variables: engine) if engine else None,
        sparse_as_dense=sparse_as_dense,
        scale_local_gradients=scale_local_gradients,
        steps=steps,
    )
    if not is_keras:
        return _distribute_v1(optimizer, exchange, backward_passes_per_step)
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    _check_keras(inner)
    _accumulate(inner, backward_passes_per_step)
    if name is not None:
        optimizer.name = name
    total = 1 if average_aggregated_gradients else backward_passes_per_step
    if not has_own_apply(inner):
        inner.detox = KerasGradients(inner, exchange, total)
    elif backward_passes_per_step == 1 and not inner.gradient_accumulation_steps:
        inner.detox = ExchangeBeforeApply(inner, exchange)
    else:
        raise ValueError(
            f"{type(inner).__name__} has an apply() of its own, so that gradients are exchanged "
            "before it and cannot be accumulated: use backward_passes_per_step=1"
        )
    if engines and engine:
        inner.detox_team = Team(
            process_set,
            engines.plan.groups,
            engine.presence,
            context.name(process_set),
            context.session().told,
            engine.scrub,
        )
    optimizer.register_local_var = exchange.register_local
    return optimizer


def PartialDistributedOptimizer(
    optimizer: Any, *args: Any, local_layers: Any = None, **kwargs: Any
) -> Any:
    """Turn an optimizer into one like `DistributedOptimizer`, but for the weights of some layers.

    Args:
        optimizer, *args, **kwargs: as for `DistributedOptimizer`.
        local_layers: a Keras layer, or several, whose gradients stay on this rank.
    """
    return keep_local(DistributedOptimizer(optimizer, *args, **kwargs), local_layers)


def keep_local(optimizer: Any, layers: Any) -> Any:
    """Have a distributed optimizer keep the gradients of a layer, or of several, to this rank."""
    for variable in local_weights(layers):
        optimizer.register_local_var(variable)
    return optimizer


class KerasGradients:
    """The place between a Keras optimizer's gradients and its step, taken over for the exchange.

    The class of the optimizer stays what it is: two methods of this one instance are replaced, the
    last that see the gradients before and after Keras has accumulated them, and before it clips;
    and those that change weights and state, which do nothing where a step is to be skipped.

    Args:
        optimizer: of Keras 3; not a LossScaleOptimizer.
        exchange: turns gradients into the update.
        factor: what the update is multiplied by.

    Attributes:
        models: those that train with it by now.
    """

    def __init__(self, optimizer: Any, exchange: GradientExchange, factor: int) -> None:
        self.models: WeakSet[Any] = WeakSet()
        self._optimizer = optimizer
        self._exchange = exchange
        self._factor = factor
        self._variables: list[Any] = []
        self._exchanged = False
        self._passed = False
        self._clip = optimizer._clip_gradients
        self._apply = optimizer._backend_apply_gradients
        optimizer._clip_gradients = self._exchange_and_clip
        optimizer._backend_apply_gradients = self._note_variables
        decay, update = optimizer._apply_weight_decay, optimizer._backend_update_step
        optimizer._apply_weight_decay = self._unless_skipped(decay)
        optimizer._backend_update_step = self._unless_skipped(exchange.counted(update))
        average = optimizer._update_model_variables_moving_average
        if not optimizer.gradient_accumulation_steps:
            optimizer._update_model_variables_moving_average = self._unless_skipped(average)

    def exchange_before_scaling(self, scaler: Any, gradients: Any, variables: Any) -> list[Any]:
        """Return the update for a LossScaleOptimizer, which takes it to be its gradients."""
        variables = list(variables or scaler._trainable_variables)
        return self._exchange(list(gradients), variables)

    def step_with_update(self, step: Any) -> None:
        """Call `step()`, which applies an update that was exchanged already."""
        self._exchanged = True
        try:
            step()
        finally:
            self._exchanged = False

    def _note_variables(self, gradients: Any, variables: Any) -> None:
        self._variables = list(variables)
        self._passed = False
        self._apply(gradients, variables)
        if not (self._passed or self._optimizer.gradient_accumulation_steps):
            raise RuntimeError(
                f"{type(self._optimizer).__name__} stepped without clipping its gradients, where "
                "they are exchanged: use DistributedGradientTape with this optimizer, or the "
                "version of Keras that this package was tested with"
            )
        is_skipped = self._exchange.is_skipped
        if is_skipped is not None and not self._optimizer.gradient_accumulation_steps:
            iterations = self._optimizer.iterations  # Keras counts the step
            iterations.assign_sub(tf.cast(is_skipped, iterations.dtype))

    def _unless_skipped(self, change: Callable[..., None]) -> Callable[..., None]:
        """Return what makes a change, unless the latest update is to be skipped."""

        def change_or_not(*args: Any) -> None:
            is_skipped = self._exchange.is_skipped
            if is_skipped is None:
                change(*args)
            else:
                tf.cond(is_skipped, lambda: None, lambda: change(*args) and None)

        return change_or_not

    def _exchange_and_clip(self, gradients: Any) -> Any:
        self._passed = True
        if not self._exchanged:
            gradients = self._exchange(gradients, self._variables)
        return self._clip([scaled(gradient, self._factor) for gradient in gradients])


def _check_keras(optimizer: Any) -> None:
    """Refuse what is not an optimizer of Keras 3 on TensorFlow, and wrapping twice."""
    require_tensorflow()
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"{type(optimizer).__name__} is not an optimizer of Keras 3 (keras.optimizers) nor of "
            "tf.compat.v1.train; with anything else use DistributedGradientTape"
        )
    if hasattr(optimizer, "detox"):
        raise ValueError("the optimizer is distributed already")
    replace_methods()


def _accumulate(optimizer: Any, passes: int) -> None:
    """Have Keras accumulate the gradients of some calls before each step."""
    if passes == 1:
        return
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            "backward_passes_per_step and the optimizer's gradient_accumulation_steps are the same "
            "thing: give one of them"
        )
    if optimizer.built:
        raise ValueError("backward_passes_per_step needs an optimizer that has not stepped yet")
    optimizer.gradient_accumulation_steps = passes


def _distribute_v1(optimizer: Any, exchange: GradientExchange, passes: int) -> Any:
    """Turn an optimizer of TensorFlow 1 into one whose `compute_gradients` exchanges."""
    if passes != 1:
        raise ValueError("backward_passes_per_step works with optimizers of Keras 3 only")
    compute = optimizer.compute_gradients

    def compute_gradients(*args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """Compute the aggregate of all groups' gradients: (gradient, variable) pairs."""
        gradients, variables = zip(*compute(*args, **kwargs), strict=True)
        return list(zip(exchange(gradients, variables), variables, strict=True))

    optimizer.compute_gradients = compute_gradients
    optimizer._optimizer = optimizer  # where Horovod's scripts look for the wrapped one
    optimizer.register_local_var = exchange.register_local
    return optimizer

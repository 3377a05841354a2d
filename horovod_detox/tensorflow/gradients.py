"""From gradients to the update that all ranks share, eagerly or inside a tf.function."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from horovod_detox.arrays.namespaces import like
from horovod_detox.config import Plan
from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange.control import ParametersDiffer
from horovod_detox.exchange.step import Outcome
from horovod_detox.frontend.reduction import Reduction
from horovod_detox.packing.bits import refuse_sparse
from horovod_detox.packing.layout import Layout
from horovod_detox.packing.tensorflow import Packing, SignPacking, packing_of
from horovod_detox.tensorflow.batches import batches, fed
from horovod_detox.tensorflow.compression import Compression
from horovod_detox.tensorflow.early import EarlyGradients, early_gradients
from horovod_detox.tensorflow.failures import raise_as_they_are, remembered
from horovod_detox.tensorflow.memory import memory_of
from horovod_detox.tensorflow.missing import Named, completed, wire_name
from horovod_detox.tensorflow.variables import name_of, native

raise_as_they_are()

EngineOf = Callable[[Sequence[Any]], Engine | DrilledEngine]


class GradientExchange:
    """Replace the gradients of some variables by the update.

    Args:
        reduction: how.
        plan: groups and rule; None: there is nobody to exchange with.
        engine_of: returns the engine for the gradients of some variables; None: as for the plan.
        sparse_as_dense: return dense updates for `tf.IndexedSlices`, which always travel densely.
        scale_local_gradients: divide the gradients of local variables by the number of groups.
        steps: a number of int64 to count the optimizer's steps in; None: they are not counted.

    Attributes:
        is_skipped: whether the latest update is to be skipped, a tensor; None: it cannot be.
        variables: those that the latest gradients were of.

    Raises:
        ValueError: when the rule needs more than the compression sends.
    """

    def __init__(
        self,
        reduction: Reduction,
        plan: Plan | None,
        engine_of: EngineOf | None,
        *,
        sparse_as_dense: bool,
        scale_local_gradients: bool,
        steps: tf.Variable | None = None,
    ) -> None:
        if plan is not None and reduction.compression is Compression.sign:
            plan.check_signs()
        groups = len(plan.groups) if plan else 1
        self._plan = plan
        self._compression = reduction.compression
        self._sparse_as_dense = sparse_as_dense
        self._engine_of = engine_of
        self._local: set[Any] = set()
        self._factor = reduction.factor(groups)
        self.is_skipped: Any = None
        self.variables: list[tf.Variable] = []
        self._steps = tf.constant(0, tf.int64) if steps is None else steps
        self._local_factor = 1 / groups if scale_local_gradients else 1.0

    def register_local(self, variable: Any) -> None:
        """Keep the gradients of a variable to this rank."""
        self._local.add(native(variable).ref())

    def counted(self, step: Callable[..., None]) -> Callable[..., None]:
        """Return what makes a step of an optimizer, and counts it."""

        def step_and_count(*args: Any) -> None:
            step(*args)
            self._steps.assign_add(1)

        return step_and_count

    def weights(self) -> Iterator[np.ndarray]:
        """Yield the values of the variables that the latest gradients were of."""
        return (variable.numpy() for variable in self.variables)

    def is_local(self, variable: Any) -> bool:
        """Return whether the gradients of a variable stay on this rank."""
        return native(variable).ref() in self._local

    def __call__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Return the update for each variable; None where there is no gradient.

        Args:
            gradients: tensors, `tf.IndexedSlices` or None, of known shape.
            variables: what they are the gradients of.
        """
        result: list[Any] = list(gradients)
        shared: Named = {}
        for i, gradient in enumerate(gradients):
            if self.is_local(variables[i]):
                result[i] = scaled(gradient, self._local_factor)
            else:
                shared[name_of(variables[i], i)] = (gradient, variables[i])
        if self._engine_of is None or not any(
            gradient is not None for gradient, _ in shared.values()
        ):
            return result
        sources = [native(variable) for _, variable in shared.values()]
        self.variables = readable(sources)
        engine = self._engine_of(sources)
        try:
            updates = self._exchange(engine, shared)
        except ParametersDiffer as error:
            if self._plan is None or not tf.executing_eagerly():
                raise
            updates = self._exchange(engine, completed(shared, error, self._plan))
        for i, variable in enumerate(variables):
            if not self.is_local(variable):
                result[i] = updates.get(name_of(variable, i))
        return result

    def _exchange(self, engine: Engine | DrilledEngine, shared: Named) -> dict[str, Any]:
        """Return the updates of the (gradient, variable) pairs that have a gradient, by name."""
        given = {name: pair for name, pair in shared.items() if pair[0] is not None}
        dense = [(wire_name(name, g), _dense(g, v)) for name, (g, v) in given.items()]
        if self._compression is Compression.sign:
            for name, (gradient, _) in given.items():
                if isinstance(gradient, tf.IndexedSlices):
                    refuse_sparse(name)
        packing = packing_of(dense, self._compression)
        update, self.is_skipped = _exchange(engine, packing, tf.identity(self._steps))
        updates = {}
        for (name, (gradient, _)), tensor in zip(
            given.items(), packing.unpack(update), strict=True
        ):
            as_dense = self._sparse_as_dense or not isinstance(gradient, tf.IndexedSlices)
            updates[name] = scaled(tensor if as_dense else _sparse(tensor), self._factor)
        return updates


def readable(sources: Sequence[Any]) -> list[tf.Variable]:
    """Return those that are variables, unless they are in a graph of TensorFlow 1."""
    if not tf.compat.v1.executing_eagerly_outside_functions():
        return []
    return [source for source in sources if isinstance(source, tf.Variable)]


def scaled(gradient: Any, factor: float) -> Any:
    """Return a gradient, a tensor or `tf.IndexedSlices`, times a factor."""
    if factor == 1:
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)


def _exchange(
    engine: Engine | DrilledEngine, packing: Packing | SignPacking, steps: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the words of the update, and whether it is to be skipped."""
    layout, memory = packing.layout, memory_of(engine)
    if tf.executing_eagerly():
        words = packing.pack()
        _count(engine, steps)
        outcome = engine.exchange(np.asarray(words), layout, memory.lend(layout.words))
        batches.forget()
        return like(words, outcome.update), tf.constant(outcome.failure is not None)
    _refuse_compilation()
    if (
        isinstance(engine, Engine)
        and isinstance(packing, Packing)
        and len(engine.parts(layout)) > 1
    ):
        early = early_gradients(engine, layout)
        return _exchange_early(engine, early, packing.wires, steps)

    def exchange(steps: Any, copy: np.ndarray) -> Outcome:
        _count(engine, steps)
        return engine.exchange(copy, layout, memory.lend(layout.words))

    return _traced(exchange, steps, [packing.pack()], layout)


def _exchange_early(
    engine: Engine, early: EarlyGradients, wires: Sequence[tf.Tensor], steps: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Do the same with gradients that leave in groups, each as soon as it is computed."""

    def leave(group: int, steps: Any, *gradients: np.ndarray) -> Any:
        if group == 0:
            _count(engine, steps)
            early.begin()
        early.leave(group, gradients)
        return steps

    def finish(steps: Any, *gradients: np.ndarray) -> Outcome:
        leave(last, steps, *gradients)
        return early.finish()

    last = len(early.groups) - 1
    of_group = [[wires[i] for i in group] for group in early.groups]
    for group in range(last):  # each gets what the one before returns, so that they keep in order
        steps = tf.numpy_function(
            remembered(partial(leave, group)), [steps, *of_group[group]], tf.int64
        )
        steps.set_shape(())
    return _traced(finish, steps, of_group[last], early.layout)


def _traced(
    exchange: Callable[..., Outcome], steps: tf.Tensor, given: list[tf.Tensor], layout: Layout
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return what an exchange, which is given tensors, will return when the function runs."""
    batch = fed(tf.compat.v1.get_default_graph())

    def run(steps: Any, *given: np.ndarray) -> tuple[np.ndarray, Any, Any]:
        batches.enter(batch)
        outcome = exchange(steps, *given)
        is_skipped = np.bool_(outcome.failure is not None)
        return outcome.update, is_skipped, np.bool_(batches.is_asked())

    update, is_skipped, is_asked = tf.numpy_function(
        remembered(run),
        [steps, *given],
        (tf.int64, tf.bool, tf.bool),
        name="horovod_detox_needs_jit_compile_False",
    )
    update.set_shape((layout.words,))
    is_skipped.set_shape(())
    if batch:
        is_asked.set_shape(())
        tf.cond(is_asked, lambda: tf.numpy_function(batches.feed, batch, tf.bool), lambda: False)
    return update, is_skipped


def _count(engine: Engine | DrilledEngine, steps: Any) -> None:
    """Tell an engine how many steps its optimizer has made."""
    if engine.tally.steps is not None:
        engine.tally.steps = int(steps)


def _dense(gradient: Any, variable: Any) -> tf.Tensor:
    """Return a gradient as a dense tensor of the variable's shape."""
    if isinstance(gradient, tf.IndexedSlices):
        rows = variable.shape[0]
        gradient = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, rows)
    return tf.ensure_shape(gradient, variable.shape)


def _sparse(tensor: tf.Tensor) -> tf.IndexedSlices:
    """Return the rows that are not zero."""
    rows = tf.reshape(tensor, [tf.shape(tensor)[0], -1])
    indices = tf.where(tf.reduce_any(rows != 0, axis=1))[:, 0]
    return tf.IndexedSlices(tf.gather(tensor, indices), indices, tf.shape(tensor, tf.int64))


def _refuse_compilation() -> None:
    """Refuse to be traced for XLA, which has no operations that talk to other ranks.

    TensorFlow marks the graph only after it was traced. While it is, the function is among the
    callers: the object, `self`, of one of the methods on Python's stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, tf.types.experimental.PolymorphicFunction) and getattr(
            caller, "_jit_compile", False
        ):
            raise ValueError(
                "gradients cannot be exchanged in a function that XLA compiles, as it has no "
                "operations that talk to other ranks: use model.compile(..., jit_compile=False), "
                "or tf.function without jit_compile"
            )
        frame = frame.f_back

"""tf.GradientTape with DETOX in the place of allreduce."""

import weakref
from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_detox.attacks import Attack
from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.frontend.context import Engines
from horovod_detox.frontend.reduction import Reduction
from horovod_detox.frontend.session import Session
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.gradients import GradientExchange, readable
from horovod_detox.tensorflow.replicas import held
from horovod_detox.vote.work import Tally

_shared: "WeakKeyDictionary[Session, dict[Any, _Engines | None]]" = WeakKeyDictionary()

# What wraps a tape, and what it does then, is Python's, also where a traced function calls it.
_as_it_is = tf.autograph.experimental.do_not_convert


@_as_it_is
def DistributedGradientTape(
    gradtape: tf.GradientTape,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = hvd.Compression.none,
    sparse_as_dense: bool = False,
    op: Any = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = hvd.global_process_set,
    scale_local_gradients: bool = True,
    *,
    attack: Attack | None = None,
) -> Any:
    """Turn a tape into one whose `gradient()` is the robust aggregate of all groups' gradients.

    The arguments are those of `horovod.tensorflow.DistributedGradientTape` 0.28, with these
    meanings. Use it eagerly or in a tf.function, with variables of TensorFlow or Keras 3.

    Args:
        gradtape: the tape; it is changed and returned.
        device_dense, device_sparse: accepted, without effect.
        compression: one of `Compression`, or of your own: element by element, and deterministic.
        op: Average, or Sum: the average times the number of groups.
        gradient_predivide_factor, num_groups, groups: accepted, without effect.
        process_set: the ranks that train together; groups are formed among them.
        sparse_as_dense: return dense updates for `tf.IndexedSlices`, which always travel densely.
        scale_local_gradients: divide the gradients of local layers by the number of groups.
        attack: the fault to rehearse, the same on every rank; None: HOROVOD_DETOX_ATTACK.

    Raises:
        ValueError: for arguments that Horovod refuses, and for what cannot work, with the reason.
    """
    reduction = Reduction(
        hvd=hvd,
        compression=compression,
        op=op,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        process_set=process_set,
        attack=attack,
    )
    base = type(gradtape)
    tape: Any = gradtape
    tape.__class__ = type(base.__name__, (base,), dict(vars(_DistributedGradientTape)))
    engines = _engines_of(reduction)
    tape._exchange = GradientExchange(
        reduction,
        engines.plan if engines else None,
        engines,
        sparse_as_dense=sparse_as_dense,
        scale_local_gradients=scale_local_gradients,
    )
    return tape


def PartialDistributedGradientTape(
    gradtape: tf.GradientTape, *args: Any, local_layers: Any = None, **kwargs: Any
) -> Any:
    """Turn a tape into one like `DistributedGradientTape`, but for the weights of some layers.

    Args:
        gradtape, *args, **kwargs: as for `DistributedGradientTape`.
        local_layers: a Keras layer, or several, whose gradients stay on this rank.
    """
    tape = DistributedGradientTape(gradtape, *args, **kwargs)
    for variable in local_weights(local_layers):
        tape.register_local_source(variable)
    return tape


class _DistributedGradientTape(tf.GradientTape):
    """The methods that replace those of the tape's class.

    `super(self.__class__, self)` is the tape's own class, one level deep, as in Horovod.
    """

    _exchange: GradientExchange

    def register_local_source(self, source: Any) -> None:
        """Keep the gradients of a variable to this rank."""
        self._exchange.register_local(source)

    @_as_it_is
    def gradient(  # type: ignore[override]  # Horovod's, whose fourth argument is another
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        use_generic_names: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return the aggregate of all groups' gradients, in the structure of `sources`.

        Args:
            target, sources, output_gradients, **kwargs: as for `tf.GradientTape.gradient`.
            use_generic_names: accepted; names never depend on a rank.
        """
        gradients = super(self.__class__, self).gradient(
            target, sources, output_gradients, **kwargs
        )
        update = self._exchange(tf.nest.flatten(gradients), tf.nest.flatten(sources))
        return tf.nest.pack_sequence_as(sources, update)

    def get_local_and_global_gradients(
        self, target: Any, sources: Sequence[Any], *args: Any, **kwargs: Any
    ) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """Return (source, gradient) pairs: those of local sources, then those of all others."""
        pairs = list(zip(sources, self.gradient(target, sources, *args, **kwargs), strict=True))
        local = [pair for pair in pairs if self._exchange.is_local(pair[0])]
        return local, [pair for pair in pairs if not self._exchange.is_local(pair[0])]


class _Engines:
    """The engines of all tapes of a session: scripts wrap a new tape in every step.

    Each set of variables has an engine of its own, as each optimizer has; of tensors, which are
    others in every step, each set of names, shapes and dtypes.
    """

    def __init__(self, engines: Engines) -> None:
        self.plan = engines.plan
        self._engines = engines
        self._made: dict[Hashable, Engine | DrilledEngine] = {}

    def __call__(self, sources: Sequence[Any]) -> Engine | DrilledEngine:
        key = tuple(map(_identity, sources))
        if key not in self._made:
            variables = readable(sources)
            self._made[key] = self._engines.make_for_gradients(
                weights=lambda: (variable.numpy() for variable in variables),
                held=held(lambda: variables) if variables else None,
            )
            if isinstance(sources[0], tf.Variable):  # another may get its identity
                weakref.finalize(sources[0], self._made.pop, key, None)
        return self._made[key]


def _identity(source: Any) -> Hashable:
    """Return what tells a variable from all others, or a tensor from those of another kind."""
    if isinstance(source, tf.Variable):
        return id(source)
    return str(source.shape), source.dtype.name


def _engines_of(reduction: Reduction) -> _Engines | None:
    """Return the engines of the session's tapes; None where there is nobody to vote with."""
    shared = _shared.setdefault(context.session(), {})
    key = (reduction.process_set, reduction.attack)
    if key not in shared:
        tally = Tally("tapes", steps=None)
        engines = context.engines(reduction.process_set, tally, reduction.attack)
        shared[key] = _Engines(engines) if engines else None
    return shared[key]


def local_weights(layers: Any) -> list[Any]:
    """Return the trainable weights of a Keras layer, or of several; of none for None."""
    if layers is None:
        return []
    layers = layers if isinstance(layers, (list, tuple, set)) else [layers]
    if not all(isinstance(layer, tf.keras.layers.Layer) for layer in layers):
        raise ValueError("local_layers must be Keras layers")
    return [variable for layer in layers for variable in layer.trainable_weights]

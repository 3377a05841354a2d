"""The batch that this rank computed its latest gradient from, as far as it can be seen.

It is digested only when a rank was outvoted. A traced function has its batch from its arguments, or
from an iterator, whose tensors no longer exist when the function has returned: then an operation
behind the exchange digests them, in the step in which it is asked to.
"""

import functools
from collections import deque
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops.iterator_ops import OwnedIterator
from tensorflow.python.ops.control_flow_v2_func_graphs import ControlFlowFuncGraph

from horovod_detox.replicas.replicas import digest_of_batch
from horovod_detox.vote.fingerprint import digest

ELEMENTS = frozenset({"IteratorGetNext", "IteratorGetNextSync", "OptionalGetValue"})
"""Operations that return an element of a data set."""
MOST_BATCHES = 16
"""So many batches, the latest, are kept until the next exchange of a loop that runs eagerly."""


class Batches:
    """Those of this process."""

    def __init__(self) -> None:
        self._given: Any = ()
        self._handed_out: deque[Any] = deque(maxlen=MOST_BATCHES)
        self._fed: list[np.ndarray] = []
        self._is_fed = self._is_asked = False
        self._is_known = True

    def begin(self, given: Any = ()) -> None:
        """Forget all; a traced function begins that is given something, or none runs any more."""
        self._given, self._fed = given, []
        self._is_fed = self._is_asked = False
        self._is_known = True

    def enter(self, fed: list[tf.Tensor] | None) -> None:
        """Begin an exchange in a traced function.

        Args:
            fed: what `fed` has returned for it.
        """
        self._is_known &= fed is not None
        self._is_fed |= bool(fed)

    def ask(self) -> None:
        """Have the batch of the exchange under way digested."""
        self._is_asked = True

    def is_asked(self) -> bool:
        """Return whether it is to be digested, once."""
        is_asked, self._is_asked = self._is_asked, False
        return is_asked

    def feed(self, *arrays: np.ndarray) -> np.bool_:
        """Digest what an iterator has given to the function that runs."""
        self._fed += [_digest(array) for array in arrays]
        return np.bool_(True)

    def hand_out(self, element: Any) -> None:
        """Remember what an iterator has given to the script."""
        self._handed_out.append(element)

    def forget(self) -> None:
        """Forget what the script was given, as it was exchanged."""
        self._handed_out.clear()

    def digest(self) -> np.ndarray | None:
        """Return a digest of the latest batch, `(WORDS,)` of int64; None: it is not known."""
        if self._is_fed or not self._is_known:
            return digest_of_batch(self._fed) if self._is_known and self._fed else None
        given = tf.nest.flatten(self._given) or tf.nest.flatten([*self._handed_out])
        arrays = [np.asarray(x) for x in given if isinstance(x, (tf.Tensor, np.ndarray))]
        numbers = [_digest(array) for array in arrays if not array.dtype.hasobject]
        return digest_of_batch(numbers) if numbers else None


def _digest(array: np.ndarray) -> np.ndarray:
    return digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def fed(graph: Any) -> list[tf.Tensor] | None:
    """Return the batch of a function that is being traced, if it has it from an iterator.

    Args:
        graph: is being made.

    Returns:
        its numbers; empty: it is among the arguments of the outermost function; None: not known, as
        in a loop of AutoGraph over a data set.
    """
    functions = []
    while hasattr(graph, "outer_graph"):
        elements = [op for op in graph.get_operations() if op.type in ELEMENTS]
        if elements and not functions:
            return _numbers(tensor for op in elements for tensor in op.outputs)
        if elements:  # it was handed on to a function; those inside of that are given other things
            arguments = len(functions[-1].inputs) - len(functions[-1].captures)
            known = _numbers(functions[-1].inputs[:arguments])
            return known if len(functions) == 1 and known else None
        if "Dataset" in graph.name:
            return None
        if not isinstance(graph, ControlFlowFuncGraph):
            functions.append(graph)
        graph = graph.outer_graph
    return []


def _numbers(tensors: Any) -> list[tf.Tensor]:
    return [x for x in tensors if x.dtype.is_floating or x.dtype.is_integer or x.dtype.is_bool]


def remember_batches() -> None:
    """Have what iterators of tf.data hand out eagerly remembered until the next exchange."""
    if getattr(OwnedIterator._next_internal, "remembers", False):
        return
    hand_out = OwnedIterator._next_internal

    @functools.wraps(hand_out)
    def remember(self: Any) -> Any:
        element = hand_out(self)
        if tf.executing_eagerly():
            batches.hand_out(element)
        return element

    remember.remembers = True  # type: ignore[attr-defined]
    OwnedIterator._next_internal = remember


batches = Batches()
"""Those of this process."""

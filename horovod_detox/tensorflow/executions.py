"""Traced functions that run: while one does, variables are neither read nor written here.

TensorFlow does not say which of its operations an exchange is in the midst of.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
import tensorflow as tf

from horovod_detox.engine import Engine
from horovod_detox.replicas.replicas import digest_of_batch
from horovod_detox.vote.fingerprint import digest


class Executions:
    """Those of this process.

    Attributes:
        engines: are asked, before one runs, to digest what cannot be read in it.
    """

    def __init__(self) -> None:
        self.engines: WeakSet[Engine] = WeakSet()
        self._depth = 0
        self._later: list[Callable[[], None]] = []
        self._given: Any = ()

    def is_over(self) -> bool:
        """Return whether none runs."""
        return not self._depth

    def after(self, task: Callable[[], None]) -> None:
        """Do something when none runs any more; nothing, if it fails."""
        self._later.append(task)

    @contextmanager
    def running(self, arguments: Any) -> Iterator[None]:
        """Run one inside of the block, or trace it for another.

        Args:
            arguments: that it was given.
        """
        if not tf.executing_eagerly():
            yield
            return
        if self.is_over():
            self._later.clear()
            for engine in list(self.engines):
                engine.prepare()
            self._given = arguments
        self._depth += 1
        try:
            try:
                yield
            finally:
                self._depth -= 1
            if self.is_over():
                tasks, self._later = self._later, []
                for task in tasks:
                    task()
        finally:
            if self.is_over():
                self._given = ()

    def digest_of_batch(self) -> np.ndarray | None:
        """Return a digest of the tensors that the one under way was given; None: it has none.

        In Keras's `fit` it is given an iterator.
        """
        given = [x for x in tf.nest.flatten(self._given) if isinstance(x, (tf.Tensor, np.ndarray))]
        arrays = [np.ascontiguousarray(np.asarray(tensor)) for tensor in given]
        numbers = [array for array in arrays if not array.dtype.hasobject]
        return digest_of_batch([digest(array) for array in numbers]) if numbers else None


executions = Executions()

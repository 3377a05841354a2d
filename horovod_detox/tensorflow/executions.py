"""Traced functions that run: while one does, variables are neither read nor written here.

TensorFlow does not say which of its operations an exchange is in the midst of.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import tensorflow as tf

from horovod_detox.engine import Engine
from horovod_detox.tensorflow.batches import batches


class Executions:
    """Those of this process.

    Attributes:
        engines: are asked, before one runs, to digest what cannot be read in it.
    """

    def __init__(self) -> None:
        self.engines: WeakSet[Engine] = WeakSet()
        self._depth = 0
        self._later: list[Callable[[], None]] = []

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
            batches.begin(arguments)
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
                batches.begin()


executions = Executions()

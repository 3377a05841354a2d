"""Memory of updates that TensorFlow takes in place, used again once it has let go of them."""

import weakref
from typing import Any

import numpy as np

from horovod_detox.arrays.namespaces import aligned_empty


class UsedAgain:
    """Memory for words that is lent, and comes back when neither they nor a view of them live.

    Pages that are new in every step take a third of the processor time of an exchange.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def lend(self, words: int) -> np.ndarray:
        """Return words of any content: `(words,)` of int64."""
        fitting = [memory for memory in self._free if len(memory) == words]
        memory = fitting.pop() if fitting else aligned_empty((words,), "int64")
        self._free[:] = fitting[:1]
        lent = np.frombuffer(memory.data, np.int64)  # what views of it keep alive
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent


def memory_of(engine: Any) -> UsedAgain:
    """Return that of the updates of an engine."""
    return _of_engines.setdefault(engine, UsedAgain())


_of_engines: weakref.WeakKeyDictionary[Any, UsedAgain] = weakref.WeakKeyDictionary()

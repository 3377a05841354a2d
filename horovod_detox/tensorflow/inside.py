"""Collectives of Horovod inside of traced functions: others see that a rank may wait in one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

from horovod_detox.exchange.waits import waits


class Inside:
    """What functions hold, as far as this process has traced them."""

    def __init__(self) -> None:
        self._collectives: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()
        self._threads = threading.local()

    def note(self, collective: str) -> None:
        """Note that the functions which this thread traces hold a collective."""
        for function in self._traced():
            held = self._collectives.setdefault(function, [])
            if collective not in held:
                held.append(collective)

    @contextmanager
    def running(self, function: Any) -> Iterator[bool]:
        """Run or trace a function inside of the block; yield whether it may wait for others."""
        traced = self._traced()
        traced.append(function)
        try:
            if tf.executing_eagerly() and (held := self._collectives.get(function)):
                more = f" and {len(held) - 1} more" if held[1:] else ""
                with waits.waiting(f"a function with {held[0]}{more}", is_possible=True):
                    yield True
            else:
                yield False
        finally:
            traced.pop()

    def _traced(self) -> list[Any]:
        return self._threads.__dict__.setdefault("traced", [])


inside = Inside()

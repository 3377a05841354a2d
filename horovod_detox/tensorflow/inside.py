"""Collectives of Horovod inside of traced functions: others see that a rank may wait in one."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

from horovod_detox.exchange.waits import waits


class Inside:
    """What functions hold, as far as this process has traced them."""

    def __init__(self) -> None:
        self._held: WeakKeyDictionary[Any, list[tuple[str, tuple[int, ...]]]] = WeakKeyDictionary()
        self._threads = threading.local()

    def note(self, collective: str, ranks: Sequence[int]) -> None:
        """Note that the functions which this thread traces hold a collective of some ranks.

        Args:
            collective: in words.
            ranks: that have to come there; empty: all.
        """
        for function in self._traced():
            held = self._held.setdefault(function, [])
            if (one := (collective, tuple(ranks))) not in held:
                held.append(one)

    @contextmanager
    def running(self, function: Any) -> Iterator[bool]:
        """Run or trace a function inside of the block; yield whether it may wait for others."""
        traced = self._traced()
        traced.append(function)
        try:
            if tf.executing_eagerly() and (held := self._held.get(function)):
                first, *others = dict.fromkeys(name for name, _ in held)
                what = f"a function with {first}" + (f" and {len(others)} more" if others else "")
                sets = [ranks for _, ranks in held]
                ranks = sorted({*chain(*sets)}) if all(sets) else ()
                with waits.waiting(what, ranks, is_possible=True):
                    yield True
            else:
                yield False
        finally:
            traced.pop()

    def _traced(self) -> list[Any]:
        return self._threads.__dict__.setdefault("traced", [])


inside = Inside()

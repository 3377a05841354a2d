"""The exchange of a gradient part by part, by a thread of its own, while others are computed."""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Protocol

from horovod_detox.arrays.namespaces import Copy, Words
from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import RanksJoined
from horovod_detox.exchange.driver import Driver, Task
from horovod_detox.exchange.sharded import Sharded
from horovod_detox.exchange.step import NoMajority, Outcome, Postponed
from horovod_detox.packing.layout import Layout

Place = AbstractContextManager[Any]
"""What a thread enters to compute where another does."""


class Packing(Protocol):
    """Gradients that can be packed one by one; those that are known first should come first."""

    layout: Layout
    copy: Copy
    update: Words

    @property
    def parameters(self) -> Sequence[Any]:
        """Return what the gradients are of, in the order of the layout."""
        ...

    def pack(self, indices: Sequence[int]) -> Copy:
        """Return the copy, with the gradients of some parameters in it as they are now."""
        ...

    def unpack(self, update: Words, factor: float, indices: Sequence[int]) -> None:
        """Write `factor` times the update into the gradients of some parameters."""
        ...

    def place(self) -> Place:
        """Return where this thread computes."""
        ...


class Overlap:
    """Send every part of the copy as soon as all gradients in it are known.

    The update is written into the gradients as soon as its parts arrive. All that is under way
    belongs to the driver's thread; the engine belongs to the thread that trains.

    Args:
        engine: of the exchanges.
        packing: of the gradients.
        factor: what the update is multiplied by.
        driver: what does the work; None: a thread for this one.
    """

    def __init__(
        self, engine: Engine, packing: Packing, factor: float = 1.0, driver: Driver | None = None
    ) -> None:
        self._engine, self._packing, self._factor = engine, packing, factor
        self._index = {parameter: i for i, parameter in enumerate(packing.parameters)}
        parts = engine.parts(packing.layout)
        self._parts_of = [
            [part.number for part in parts if first < part.stop and part.start < last] or [0]
            for first, last in packing.layout.spans
        ]
        self._under_way: _UnderWay | None = None
        self._driver = driver or Driver()
        if driver is None:
            weakref.finalize(self, self._driver.close).atexit = False

    def add(self, parameter: Any) -> None:
        """Take the gradient of a parameter, which will not change any more in this step."""
        under_way, place = self._begun(), self._packing.place()
        self._driver.submit(partial(under_way.add, self._index[parameter], place))

    def finish(self, is_complete: bool = True) -> Outcome:
        """Take the other gradients as they are, replace all by the update, return the outcome.

        Args:
            is_complete: whether these are all there.

        Raises:
            Postponed: on every rank, when too many lack some; to be finished later.
        """
        return self._end(is_complete, is_wanted=True)

    def abandon(self) -> None:
        """End an exchange whose outcome nobody wants: the other ranks wait for it.

        What was sent may have changed while it was, so that there may be no majority.
        """
        while self._under_way is not None:
            with suppress(Postponed, NoMajority):
                self._end(is_complete=True, is_wanted=False)

    def _begun(self) -> "_UnderWay":
        """Return the exchange under way; begin it with the first gradient of a step."""
        if self._under_way is None:
            packing = self._packing
            under_way = _UnderWay(packing, self._factor, self._parts_of)
            under_way.sharded = self._engine.begin(
                packing.copy, packing.layout, packing.update, under_way.receive
            )
            self._under_way = under_way
        return self._under_way

    def _end(self, is_complete: bool, is_wanted: bool) -> Outcome:
        under_way, packing = self._begun(), self._packing
        finish = partial(under_way.finish, is_complete, is_wanted, packing.place())
        self._under_way = None
        try:
            outcome = self._engine.finish(under_way.sharded, lambda: self._driver.call(finish))
        except Postponed:
            self._under_way = under_way
            raise
        del under_way.sharded  # each holds the other, and gradients with it
        is_final = under_way.has_update and not outcome.is_repeated
        if is_wanted and (outcome.failure is not None or not is_final):
            packing.unpack(packing.update, self._factor, range(len(packing.parameters)))
        return outcome


class _UnderWay:
    """One exchange, as the driver's thread sees it.

    Args:
        packing, factor: as of `Overlap`.
        parts_of: the numbers of the parts in which each gradient is.

    Attributes:
        sharded: where its parts are sent to.
    """

    sharded: Sharded

    def __init__(self, packing: Packing, factor: float, parts_of: Sequence[list[int]]) -> None:
        self._packing, self._factor, self._parts_of = packing, factor, parts_of
        self._to_pack = set(range(len(parts_of)))
        self._missing = Counter(part for parts in parts_of for part in parts)
        self._received: set[int] = set()
        self._is_wanted = True
        self._error: BaseException | None = None

    def add(self, index: int, place: Place) -> Task:
        """Pack a gradient, and send the parts that are complete; return what to repeat."""

        def work() -> None:
            self._packing.pack([index])
            self._to_pack.discard(index)
            for part in self._parts_of[index]:
                self._missing[part] -= 1
                if not self._missing[part]:
                    self.sharded.send(part)

        self._attempt(work, place)
        return partial(self._advance, place)

    def finish(self, is_complete: bool, is_wanted: bool, place: Place) -> Outcome:
        """Do what is left to do; raise what has failed before."""
        if self._error is not None:
            raise self._error
        self._is_wanted = is_wanted
        try:
            with place:
                if not is_complete:
                    return self.sharded.finish(self._pack_the_rest)
                self._pack_the_rest()
                return self.sharded.finish()
        except RanksJoined:
            self._pack_the_rest()
            raise
        except Postponed:
            # Until all have sent them, gradients may change.
            self._to_pack |= {
                index
                for index, parts in enumerate(self._parts_of)
                if not self.sharded.has_votes(parts)
            }
            raise

    def _pack_the_rest(self) -> None:
        """Pack the gradients that were not added, as they are now."""
        self._packing.pack(sorted(self._to_pack))

    @property
    def has_update(self) -> bool:
        """Return whether the gradients were replaced: not, while ranks have joined."""
        return len(self._received) == len(self._missing)

    def receive(self, part: int) -> None:
        """Replace the gradients of which all parts of the update are there."""
        self._received.add(part)
        whole = [
            index
            for index, parts in enumerate(self._parts_of)
            if part in parts and self._received.issuperset(parts)
        ]
        if self._is_wanted:
            self._packing.unpack(self._packing.update, self._factor, whole)

    def _advance(self, place: Place) -> Task | None:
        """Go on with what has arrived; return what to repeat."""
        self._attempt(self.sharded.advance, place)
        return partial(self._advance, place) if self._error is None else None

    def _attempt(self, work: Callable[[], None], place: Place) -> None:
        """Do some work, unless some has failed already; keep an error until the end."""
        try:
            if self._error is None:
                with place:
                    work()
        except BaseException as error:
            self._error = error

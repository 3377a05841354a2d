"""Large gradients of a traced function leave group by group, while others are computed."""

from collections.abc import Sequence
from contextlib import nullcontext
from weakref import WeakValueDictionary

import numpy as np

from horovod_detox.arrays.namespaces import aligned_empty
from horovod_detox.engine import Engine
from horovod_detox.exchange.step import Outcome
from horovod_detox.frontend.overlap import Overlap, Place
from horovod_detox.packing.layout import Layout
from horovod_detox.tensorflow.memory import UsedAgain


class EarlyGradients:
    """The copy and the update of an exchange in a traced function, which goes on part by part.

    Each group is a part of the exchange, or a little more. The last layers come first, as their
    gradients do.

    Args:
        engine: of the exchange.
        layout: of the copy.

    Attributes:
        groups: the numbers of the gradients that leave together, in the order in which they do.
    """

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.layout, self._engine = layout, engine
        self.copy = aligned_empty((layout.words,), "int64")
        self.copy[:] = 0  # also where no gradient is
        self.update = self.copy[:0]
        buffers = layout.typed(self.copy)
        self._places = [buffers[number][start:stop] for number, start, stop in layout.places]
        self._overlap, self._memory = Overlap(engine, self), UsedAgain()
        self.groups = _groups(layout, len(engine.parts(layout)))

    @property
    def parameters(self) -> Sequence[int]:
        """Return the numbers of the gradients."""
        return range(len(self._places))

    def begin(self) -> None:
        """Begin an exchange; end that of a function that has failed, for which the others wait."""
        self._overlap.abandon()
        self.update = self._memory.lend(self.layout.words)

    def leave(self, group: int, gradients: Sequence[np.ndarray]) -> None:
        """Copy the gradients of a group, whose memory is lent, and let them be sent."""
        for i, gradient in zip(self.groups[group], gradients, strict=True):
            self._places[i][:] = gradient.reshape(-1)
            if not self._engine.presence.some_have_joined:
                self._overlap.add(i)

    def finish(self) -> Outcome:
        """Return the outcome, when all groups have left; raise what `Engine.exchange` does."""
        try:
            if self._engine.presence.some_have_joined:
                return self._engine.exchange(self.copy, self.layout, self.update)
            return self._overlap.finish()
        finally:
            self.update = self.copy[:0]  # TensorFlow alone holds the memory

    def pack(self, indices: Sequence[int]) -> np.ndarray:
        """Return the copy, in which the gradients are already."""
        return self.copy

    def unpack(self, update: np.ndarray, factor: float, indices: Sequence[int]) -> None:
        """Do nothing: the function unpacks the update."""

    def place(self) -> Place:
        """Return where this thread computes."""
        return nullcontext()


def early_gradients(engine: Engine, layout: Layout) -> EarlyGradients:
    """Return those of an engine and a layout: the same while some trace of a function has them."""
    key = id(engine), layout
    found = _in_use.get(key)
    if found is None:
        found = _in_use[key] = EarlyGradients(engine, layout)
    return found


_in_use: WeakValueDictionary[tuple[int, Layout], EarlyGradients] = WeakValueDictionary()


def _groups(layout: Layout, parts: int) -> list[list[int]]:
    """Return the numbers of all gradients, the last first, in groups of about a part's size."""
    groups: list[list[int]] = [[]]
    filled = 0
    for i in reversed(range(len(layout.spans))):
        if filled * parts >= layout.words:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += layout.spans[i][1] - layout.spans[i][0]
    return groups

"""The exchange of a gradient part by part, while the backward pass computes it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from horovod_detox.arrays.namespaces import Copy, Words
from horovod_detox.engine import Engine
from horovod_detox.exchange.sharded import Sharded
from horovod_detox.exchange.step import Outcome
from horovod_detox.packing.layout import Layout


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


class Overlap:
    """Send every part of the copy as soon as all gradients in it are known.

    Args:
        engine: of the exchanges.
        packing: of the gradients.
    """

    def __init__(self, engine: Engine, packing: Packing) -> None:
        self._engine = engine
        self._packing = packing
        self._index = {parameter: i for i, parameter in enumerate(packing.parameters)}
        parts = list(enumerate(engine.parts(packing.layout)))
        self._parts_of = [
            [part for part, (start, stop) in parts if first < stop and start < last]
            for first, last in packing.layout.spans
        ]
        self._under_way: Sharded | None = None

    def add(self, parameter: Any) -> None:
        """Take the gradient of a parameter, which will not change any more in this step."""
        under_way = self._begun()
        index = self._index[parameter]
        self._packing.pack([index])
        self._to_pack.remove(index)
        for part in self._parts_of[index]:
            self._missing[part] -= 1
            if not self._missing[part]:
                under_way.send(part)
        under_way.advance()

    def finish(self) -> Outcome:
        """Take the other gradients as they are and return the outcome."""
        under_way = self._begun()
        copy = self._packing.pack(sorted(self._to_pack))
        self._under_way = None
        return self._engine.finish(under_way, copy, self._packing.layout)

    def abandon(self) -> None:
        """End an exchange whose outcome nobody wants: the other ranks wait for it."""
        if self._under_way is not None:
            self.finish()

    def _begun(self) -> Sharded:
        """Return the exchange under way; begin it with the first gradient of a step."""
        if self._under_way is None:
            packing = self._packing
            self._under_way = self._engine.begin(packing.copy, packing.layout, packing.update)
            self._to_pack = set(range(len(packing.parameters)))
            self._missing = Counter(part for parts in self._parts_of for part in parts)
        return self._under_way

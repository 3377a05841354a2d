"""Whether all ranks of a job take part in its exchanges, and want to."""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary


@dataclass
class Presence:
    """Whether all ranks of a job take part, and want to, as far as this rank knows.

    Attributes:
        some_have_joined: until all have, see `joined.py`.
        wants_to_stop: whether this rank wants to end the training.
        stopping: the ranks that were heard to want it in an exchange.
        reached: the steps of engines, by name, that others went on to while this rank was away.
    """

    some_have_joined: bool = False
    wants_to_stop: bool = False
    stopping: set[int] = field(default_factory=set)
    reached: dict[str, int] = field(default_factory=dict)
    _latest: Any = None
    _next: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)

    def note(self, engine: Any) -> None:
        """Note which engine exchanges now."""
        if self._latest is not None:
            self._next[self._latest] = engine
        self._latest = engine

    def forget_wishes(self) -> None:
        """Want to train on, and forget who else did not."""
        self.wants_to_stop, self.stopping = False, set()

    def next(self) -> Any:
        """Return the engine that exchanges next, if it is as it was before; None: none has."""
        return self._latest and self._next.get(self._latest, self._latest)

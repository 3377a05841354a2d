"""The communication seam: what every exchange needs of the ranks, and no more."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from horovod_detox.arrays.namespaces import Words


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> Any:
        """Return the result; raise ExchangeTimeout when it does not come in time."""
        ...

    def is_done(self) -> bool:
        """Return whether `wait` is known to return at once; not to be asked after it."""
        ...


class Collectives(Protocol):
    """The collectives of one set of p ranks; all ranks make the same calls, by name, in any order.

    Nothing that was passed may be written to before `wait()` has returned.
    """

    rank: int
    size: int

    def allgather(self, name: str, facts: np.ndarray) -> Handle:
        """Concatenate the ranks' facts, in host memory: `(n_i,)` of int64 -> `(sum of n_i,)`."""
        ...

    def alltoall(self, name: str, parts: Sequence[Words], spare: Words | None = None) -> Handle:
        """Send `parts[j]`, flat int64 of the frontend's kind, to rank j: -> list by sender.

        Parts may be empty and differ in length. In `spare`, words of no further use, there is
        room to join them; None: in new memory.
        """
        ...

    def broadcast(self, name: str, words: Words, root: int) -> Handle:
        """Overwrite flat int64 words of the frontend's kind by those of rank `root`."""
        ...


class ExchangeTimeout(RuntimeError):
    """A collective was not completed in time: some rank did not take part."""

    @classmethod
    def after(cls, timeout: float, rank: int, name: str) -> "ExchangeTimeout":
        """Say who waited, for how long and in which collective."""
        return cls(
            f"rank {rank} waited {timeout:g} s for the other ranks in {name!r}: some rank did not "
            "take part (it is stopped, far behind, or took another path through the script); see "
            "Detox(timeout=)"
        )

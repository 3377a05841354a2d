"""Whether all ranks are about to do the same: one small message beside every exchange."""

import numpy as np

from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.packing.layout import Layout, difference


class RanksDisagree(RuntimeError):
    """The ranks are not in the same step, or do not hold the same parameters or updates."""


class Agreement:
    """The check, under way beside the copies, that all ranks are about to do the same.

    Args:
        collectives: of the ranks.
        step: the number of the exchange.
        layout: of the copy.
        update_digest: `(2,)` of int64, the fingerprint of the latest update.
    """

    def __init__(
        self, collectives: Collectives, step: int, layout: Layout, update_digest: np.ndarray
    ) -> None:
        self._collectives = collectives
        self._layout = layout
        self._step = step
        facts = np.array([step, *layout.digest, *update_digest], dtype=np.int64)
        self._handle = collectives.allgather("agreement", facts)
        self._has_agreed = False

    def is_done(self) -> bool:
        """Return whether `wait` would not wait."""
        return self._has_agreed or self._handle.is_done()

    def wait(self) -> None:
        """Wait for the other ranks.

        Raises:
            RanksDisagree: on every rank, when one is about to do something else.
        """
        if self._has_agreed:
            return
        facts = self._handle.wait().reshape(self._collectives.size, -1)
        steps, layouts, updates = facts[:, 0], facts[:, 1:3], facts[:, 3:]
        if len(np.unique(steps)) > 1:
            raise RanksDisagree(f"the ranks are in different steps: {steps.tolist()} by rank")
        if len(np.unique(layouts, axis=0)) > 1:
            lists = share(self._collectives, "parameters", self._layout.parameters)
            raise RanksDisagree(f"the parameters differ between ranks: {difference(lists)}")
        if len(np.unique(updates, axis=0)) > 1:
            odd = _minority(updates)
            raise RanksDisagree(
                f"ranks {odd} computed another update than the others in step {self._step - 1}: "
                "the aggregation is not deterministic across these machines"
            )
        self._has_agreed = True


def _minority(rows: np.ndarray) -> list[int]:
    """Return the indices of the rows that are not the most frequent one."""
    _, inverse, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return np.flatnonzero(inverse.ravel() != counts.argmax()).tolist()

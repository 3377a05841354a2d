"""The collectives of horovod.torch behind the seam."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from horovod_detox.exchange.collectives import ExchangeTimeout, Handle

POLL_SECONDS = 0.001


class HorovodCollectives:
    """The ranks of a process set, under names that begin with `scope`."""

    def __init__(self, scope: str, timeout: float, process_set: Any = hvd.global_process_set):
        self.rank = process_set.rank()
        self.size = process_set.size()
        self._scope = scope
        self.timeout = timeout
        self._process_set = process_set

    def allgather(self, name: str, facts: np.ndarray) -> Handle:
        """Concatenate the ranks' facts: `(n_i,)` of int64 -> `(sum of n_i,)`."""
        handle = hvd.allgather_async(
            torch.tensor(facts),
            name=f"{self._scope}.{name}",
            process_set=self._process_set,
        )
        return _HorovodHandle(handle, name, self, torch.Tensor.numpy)

    def alltoall(
        self, name: str, parts: Sequence[torch.Tensor], spare: torch.Tensor | None = None
    ) -> Handle:
        """Send `parts[j]` to rank j; return what came, by sender."""
        splits = torch.tensor([len(part) for part in parts], dtype=torch.int32)
        room = None if spare is None else spare[: int(splits.sum())]
        handle = hvd.alltoall_async(
            torch.cat(list(parts), out=room),
            splits=splits,
            name=f"{self._scope}.{name}",
            process_set=self._process_set,
        )
        return _HorovodHandle(handle, name, self, lambda got: got[0].split(got[1].tolist()))

    def broadcast(self, name: str, words: torch.Tensor, root: int) -> Handle:
        """Overwrite words by those of a rank of the set."""
        handle = hvd.broadcast_async_(
            words,
            root_rank=self._process_set.ranks[root],  # Horovod counts roots in the whole job
            name=f"{self._scope}.{name}",
            process_set=self._process_set,
        )
        return _HorovodHandle(handle, name, self, lambda _: None)


class _HorovodHandle:
    """A Horovod operation under way.

    Horovod itself waits for ever for a rank that does not take part; this polls with a limit.
    """

    def __init__(
        self, handle: int, name: str, collectives: HorovodCollectives, finish: Callable[[Any], Any]
    ) -> None:
        self._handle = handle
        self._name = name
        self._collectives = collectives
        self._finish = finish

    def is_done(self) -> bool:
        return hvd.poll(self._handle)

    def wait(self) -> Any:
        timeout = self._collectives.timeout
        deadline = time.monotonic() + timeout
        while not self.is_done():
            if time.monotonic() > deadline:
                raise ExchangeTimeout.after(timeout, self._collectives.rank, self._name)
            time.sleep(POLL_SECONDS)
        return self._finish(hvd.synchronize(self._handle))

"""The collectives of horovod.torch behind the seam."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from horovod.common.exceptions import HorovodInternalError

from horovod_detox.exchange.collectives import Handle, Message, join, split
from horovod_detox.exchange.waits import waits
from horovod_detox.frontend.lost import ExchangeTimeout, check_waits, explained_in_exchange

POLL_SECONDS = 0.001


class HorovodCollectives:
    """The ranks of a process set, under names that begin with `scope`.

    Words in main memory travel in one message with the facts, those on a device beside them.
    """

    def __init__(self, scope: str, timeout: float, process_set: Any = hvd.global_process_set):
        self.rank = process_set.rank()
        self.size = process_set.size()
        self.ranks = tuple(process_set.ranks) if process_set.process_set_id else ()
        self._scope = scope
        self.timeout = timeout
        self._process_set = process_set

    def allgather(self, name: str, facts: np.ndarray) -> Handle:
        """Concatenate the ranks' facts: `(n_i,)` of int64 -> `(sum of n_i,)`."""
        return self._allgather(name, torch.tensor(facts), torch.Tensor.numpy)

    def allgather_words(self, name: str, facts: np.ndarray, words: torch.Tensor) -> Handle:
        """Send facts and words, of any lengths, to all; return messages by sender."""
        if words.device.type == "cpu":
            joined, _ = join(facts, [words.numpy()])
            return self._allgather(name, torch.from_numpy(joined), _messages)
        beside = self._beside(name, facts, [len(words)] * self.size)
        return _Parallel(self.rank, beside, self._allgather(name, words, _itself))

    def alltoall(
        self,
        name: str,
        facts: np.ndarray,
        parts: Sequence[torch.Tensor],
        spare: torch.Tensor | None = None,
    ) -> Handle:
        """Send the facts to all and `parts[j]` to rank j; return messages by sender."""
        lengths = [len(part) for part in parts]
        if parts[0].device.type == "cpu":
            room = None if spare is None else spare.numpy()
            joined, lengths = join(facts, [part.numpy() for part in parts], room)
            return self._alltoall(name, torch.from_numpy(joined), lengths, _messages)
        room = None if spare is None else spare[: sum(lengths)]
        beside = self._beside(name, facts, lengths)
        words = self._alltoall(name, torch.cat(list(parts), out=room), lengths, _itself)
        return _Parallel(self.rank, beside, words)

    def add_facts(self, name: str, facts: np.ndarray) -> Handle:
        """Add up the ranks' facts, with zeros for those that have joined: `(n,)` of int64."""
        return self._add(name, torch.tensor(facts), torch.Tensor.numpy)

    def add_words(self, name: str, words: torch.Tensor) -> Handle:
        """Add up words as int64, likewise: `(w,)`."""
        return self._add(name, words, _itself)

    def broadcast(self, name: str, words: torch.Tensor, root: int) -> Handle:
        """Overwrite words by those of a rank of the set."""
        handle = hvd.broadcast_async_(
            words,
            root_rank=self._process_set.ranks[root],  # Horovod counts roots in the whole job
            name=f"{self._scope}.{name}",
            process_set=self._process_set,
        )
        return _HorovodHandle(handle, name, self, lambda _: None)

    def _allgather(
        self, name: str, words: torch.Tensor, finish: Callable[[Any], Any]
    ) -> "_HorovodHandle":
        full_name = f"{self._scope}.{name}"
        handle = hvd.allgather_async(words, name=full_name, process_set=self._process_set)
        return _HorovodHandle(handle, name, self, finish)

    def _add(
        self, name: str, words: torch.Tensor, finish: Callable[[Any], Any]
    ) -> "_HorovodHandle":
        handle = hvd.allreduce_async(
            words, op=hvd.Sum, name=f"{self._scope}.{name}", process_set=self._process_set
        )
        return _HorovodHandle(handle, name, self, finish)

    def _alltoall(
        self, name: str, words: torch.Tensor, lengths: list[int], finish: Callable[[Any], Any]
    ) -> "_HorovodHandle":
        handle = hvd.alltoall_async(
            words,
            splits=torch.tensor(lengths, dtype=torch.int32),
            name=f"{self._scope}.{name}",
            process_set=self._process_set,
        )
        return _HorovodHandle(handle, name, self, lambda got: finish(got[0]))

    def _beside(self, name: str, facts: np.ndarray, lengths: list[int]) -> Handle:
        """Send facts to all, and how many words each rank gets."""
        joined, _ = join(facts, [np.array(lengths)])
        return self._allgather(f"{name}.facts", torch.from_numpy(joined), _messages)


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
        with waits.waiting(self._name, self._collectives.ranks):
            self._wait_until_done()
            try:
                return self._finish(hvd.synchronize(self._handle))
            except HorovodInternalError as error:
                raise explained_in_exchange(error) from error

    def _wait_until_done(self) -> None:
        timeout = self._collectives.timeout
        deadline = time.monotonic() + timeout
        while not self.is_done():
            check_waits()
            if time.monotonic() > deadline:
                raise ExchangeTimeout.after(timeout, self._collectives.rank, self._name)
            time.sleep(POLL_SECONDS)
            if waits.process_ends:
                raise ExchangeTimeout.at_the_end(self._collectives.rank, self._name)


class _Parallel:
    """Facts under way, with how many words each rank gets, and the words beside them."""

    def __init__(self, rank: int, beside: Handle, words: Handle) -> None:
        self._rank, self._beside, self._words = rank, beside, words

    def is_done(self) -> bool:
        return self._beside.is_done() and self._words.is_done()

    def wait(self) -> list[Message]:
        heads = self._beside.wait()
        received = self._words.wait().split([int(head.words[self._rank]) for head in heads])
        return [Message(head.facts, words) for head, words in zip(heads, received, strict=True)]


def _messages(joined: torch.Tensor) -> list[Message]:
    return [Message(m.facts, torch.from_numpy(m.words)) for m in split(joined.numpy())]


def _itself(words: torch.Tensor) -> torch.Tensor:
    return words

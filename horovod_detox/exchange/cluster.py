"""The in-process cluster: p ranks as threads of one process, behind the same seam as Horovod."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from horovod_detox.arrays.namespaces import Words, namespace
from horovod_detox.exchange.collectives import (
    Collectives,
    Handle,
    Message,
    RanksJoined,
)
from horovod_detox.exchange.waits import ExchangeTimeout

T = TypeVar("T")


class InProcessCluster:
    """p ranks as threads of one process, with arrays of any kind that can be written to.

    >>> def program(collectives):
    ...     return collectives.allgather("rank", np.array([collectives.rank])).wait().tolist()
    >>> InProcessCluster(3).run(program)
    [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    """

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        self.size = size
        self.timeout = timeout
        self._calls: dict[tuple[str, int], dict[int, Any]] = {}
        self._readers: Counter[tuple[str, int]] = Counter()
        self._changed = threading.Condition()
        self._failed: int | None = None
        self._joined: set[int] = set()

    def run(self, program: Callable[[Collectives], T]) -> list[T]:
        """Run `program(collectives)` on every rank and return the results by rank.

        An exception on one rank ends the waits of all others and is raised here.
        """
        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(self._run_rank, program, rank) for rank in range(self.size)]
        if self._failed is not None:
            futures[self._failed].result()
        return [future.result() for future in futures]

    def _run_rank(self, program: Callable[[Collectives], T], rank: int) -> T:
        try:
            return program(_ThreadCollectives(self, rank))
        except BaseException:
            with self._changed:
                self._failed = rank if self._failed is None else self._failed
                self._changed.notify_all()
            raise

    def deposit(self, call: tuple[str, int], rank: int, message: Any) -> Callable[[], bool]:
        """Leave a rank's message for one call of a collective; return whether all have."""
        with self._changed:
            messages = self._calls.setdefault(call, {})
            messages[rank] = message
            if len(messages) + len(self._joined) >= self.size:
                self._changed.notify_all()
        return lambda: len(messages) == self.size

    def join(self, rank: int) -> None:
        """Take part in nothing more; as with Horovod, the others can only add."""
        with self._changed:
            self._joined.add(rank)
            self._changed.notify_all()

    def add(self, call: tuple[str, int]) -> Any:
        """Wait for what the ranks bring that have not joined; return the sum."""
        with self._changed:
            messages = self._calls[call]
            self._changed.wait_for(
                lambda: len(messages) + len(self._joined) >= self.size, self.timeout
            )
            if len(messages) + len(self._joined) < self.size:
                raise ExchangeTimeout(f"ranks did not take part in {call[0]!r}")
        return sum(messages.values())

    def collect(self, call: tuple[str, int]) -> list[Any]:
        """Wait for every rank's message; return them by rank."""
        with self._changed:
            messages = self._calls[call]
            self._changed.wait_for(
                lambda: len(messages) == self.size or self._failed is not None or self._joined,
                self.timeout,
            )
            if self._joined and len(messages) < self.size:
                raise RanksJoined(f"{call[0]!r} is not supported with Join")
            missing = sorted(set(range(self.size)) - set(messages))
            if missing:
                raise ExchangeTimeout(f"ranks {missing} did not take part in {call[0]!r}")
            self._readers[call] += 1
            if self._readers[call] == self.size:
                del self._calls[call], self._readers[call]
        return [messages[rank] for rank in range(self.size)]


class _ThreadCollectives:
    """One rank's end of the in-process cluster."""

    def __init__(self, cluster: InProcessCluster, rank: int) -> None:
        self.rank = rank
        self.size = cluster.size
        self._cluster = cluster
        self._calls: Counter[str] = Counter()

    def allgather(self, name: str, facts: np.ndarray) -> Handle:
        return self._submit(name, facts.copy(), np.concatenate)

    def allgather_words(self, name: str, facts: np.ndarray, words: Words) -> Handle:
        return self._submit(name, Message(facts.copy(), namespace(words).copy(words)), list)

    def alltoall(
        self, name: str, facts: np.ndarray, parts: Sequence[Words], spare: Words | None = None
    ) -> Handle:
        if len(parts) != self.size:
            raise ValueError(f"{len(parts)} parts for {self.size} ranks")
        sent = [Message(facts.copy(), namespace(part).copy(part)) for part in parts]
        if spare is not None:
            spare[:] = -1  # whoever relies on what was there is found out
        return self._submit(name, sent, lambda messages: [m[self.rank] for m in messages])

    def add_facts(self, name: str, facts: np.ndarray) -> Handle:
        return self.add_words(name, facts)

    def add_words(self, name: str, words: Words) -> Handle:
        call = (name, self._calls[name])
        self._calls[name] += 1
        is_done = self._cluster.deposit(call, self.rank, namespace(words).copy(words))
        return _ThreadHandle(lambda: self._cluster.add(call), is_done)

    def join(self) -> None:
        self._cluster.join(self.rank)

    def broadcast(self, name: str, words: Words, root: int) -> Handle:
        def write(messages: list[Any]) -> None:
            words[:] = messages[root]

        return self._submit(name, namespace(words).copy(words), write)

    def _submit(self, name: str, message: Any, finish: Callable[[list[Any]], Any]) -> Handle:
        call = (name, self._calls[name])
        self._calls[name] += 1
        is_done = self._cluster.deposit(call, self.rank, message)
        return _ThreadHandle(lambda: finish(self._cluster.collect(call)), is_done)


class _ThreadHandle:
    """A collective under way; as Horovod's, it is gone once it was waited for."""

    def __init__(self, wait: Callable[[], Any], is_done: Callable[[], bool]) -> None:
        self._wait = wait
        self._is_done = is_done
        self._is_gone = False

    def wait(self) -> Any:
        self._is_gone = True
        return self._wait()

    def is_done(self) -> bool:
        if self._is_gone:
            raise ValueError("this collective was waited for")
        return self._is_done()

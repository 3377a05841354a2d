"""The collectives of horovod.tensorflow behind the seam."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError

from horovod_detox.arrays.namespaces import aligned_empty
from horovod_detox.exchange.collectives import Handle, join, split
from horovod_detox.exchange.waits import waits
from horovod_detox.frontend.lost import ExchangeTimeout, check_waits, explained_in_exchange

PAUSE = 0.2
"""Seconds after which it is looked whether a wait has ended otherwise."""


class HorovodCollectives:
    """The ranks of a process set, under names that begin with `scope`; words are NumPy arrays.

    Horovod's eager operations have no names, so that only one of a kind can be under way. These
    are nodes of a graph with a session, both of their own, as a session takes the longer to begin
    with a node the more there are. What is asked for is put together until somebody waits or asks
    for it, then sent in one run of the session.
    """

    def __init__(self, scope: str, timeout: float, process_set: Any = hvd.global_process_set):
        self.rank = process_set.rank()
        self.size = process_set.size()
        self.ranks = tuple(process_set.ranks) if process_set.process_set_id else ()
        self.timeout = timeout
        self._scope = scope
        self._process_set = process_set
        self._graph = _Graph()
        self._buffers: dict[str, np.ndarray] = {}
        self._pending: list[_PendingHandle] = []

    def allgather(self, name: str, facts: np.ndarray) -> Handle:
        """Concatenate the ranks' facts: `(n_i,)` of int64 -> `(sum of n_i,)`."""
        return self._submit(name, hvd.allgather, [facts.copy()])

    def allgather_words(self, name: str, facts: np.ndarray, words: np.ndarray) -> Handle:
        """Send facts and words, of any lengths, to all; return messages by sender."""
        joined, _ = join(facts, [words])
        return self._submit(name, hvd.allgather, [joined], lambda result: list(split(result)))

    def alltoall(
        self,
        name: str,
        facts: np.ndarray,
        parts: Sequence[np.ndarray],
        spare: np.ndarray | None = None,
    ) -> Handle:
        """Send the facts to all and `parts[j]` to rank j; return messages by sender."""
        joined, lengths = join(facts, parts, spare)
        splits = np.array(lengths, dtype=np.int32)
        feeds = [joined, splits]
        return self._submit(name, hvd.alltoall, feeds, lambda result: list(split(result[0])))

    def add_facts(self, name: str, facts: np.ndarray) -> Handle:
        """Add up the ranks' facts, with zeros for those that have joined: `(n,)` of int64."""
        return self._submit(name, hvd.allreduce, [facts.copy()], op=hvd.Sum)

    def add_words(self, name: str, words: np.ndarray) -> Handle:
        """Add up words as int64, likewise: `(w,)`."""
        return self.add_facts(name, words)

    def broadcast(self, name: str, words: np.ndarray, root: int) -> Handle:
        """Overwrite words by those of a rank of the set."""
        mine = root == self.rank
        sent = words if mine else self._buffer("broadcast", len(words))  # only its length counts

        def write(received: np.ndarray) -> None:
            if not mine:
                words[:] = received

        root_rank = self._process_set.ranks[root]  # Horovod counts roots in the whole job
        return self._submit(name, hvd.broadcast, [sent], write, root_rank=root_rank)

    def send_pending(self) -> None:
        """Let all operations be under way that were asked for."""
        handles, self._pending = self._pending, []
        run = self._graph.callable([handle.operation for handle in handles])
        feeds = [feed for handle in handles for feed in handle.take_feeds()]
        running = _Running(partial(run, *feeds))
        for i, handle in enumerate(handles):
            handle.follow(running, i)

    def _submit(
        self,
        name: str,
        operation: Callable[..., Any],
        feeds: list[np.ndarray],
        finish: Callable[[Any], Any] = lambda result: result,
        **attributes: Any,
    ) -> Handle:
        node = self._graph.operation(
            f"{self._scope}.{name}",
            operation,
            tuple(feed.dtype.name for feed in feeds),
            process_set=self._process_set,
            **attributes,
        )
        handle = _PendingHandle(self, name, node, feeds, finish)
        self._pending.append(handle)
        return handle

    def _buffer(self, name: str, length: int) -> np.ndarray:
        """Return words that are used again under this name, and that TensorFlow reads in place."""
        if name not in self._buffers or len(self._buffers[name]) < length:
            self._buffers[name] = aligned_empty((length,), "int64")
        return self._buffers[name][:length]


class _PendingHandle:
    """A Horovod operation that is asked for, under way or done.

    It holds neither what was sent nor, once somebody has waited, what was received.
    """

    def __init__(
        self,
        collectives: HorovodCollectives,
        name: str,
        operation: "_Operation",
        feeds: list[np.ndarray],
        finish: Callable[[Any], Any],
    ) -> None:
        self.name = name
        self.operation = operation
        self._feeds = feeds
        self._collectives = collectives
        self._finish = finish
        self._running: _Running | None = None
        self._index = 0

    def take_feeds(self) -> list[np.ndarray]:
        """Return what is to be sent."""
        feeds, self._feeds = self._feeds, []
        return feeds

    def follow(self, running: "_Running", index: int) -> None:
        """Be under way, with others; the result is the one of this index."""
        self._running, self._index = running, index

    def is_done(self) -> bool:
        return self._sent().is_done()

    def wait(self) -> Any:
        results = self._sent().result(self.name, self._collectives)
        result, results[self._index] = results[self._index], None
        return self._finish(result)

    def _sent(self) -> "_Running":
        if self._running is None:
            self._collectives.send_pending()
        assert self._running is not None
        return self._running


class _Operation:
    """A node of the graph, and the placeholders that feed it."""

    def __init__(self, node: Any, feeds: list[Any]) -> None:
        self.node = node
        self.feeds = feeds


class _Graph:
    """Operations, each built once, and the session that runs them.

    The session has threads of its own. So an exchange inside `tf.numpy_function` cannot wait for
    the thread that it keeps busy, however few threads TensorFlow has. The threads inside of
    operations are shared by all sessions of a process, and the first says how many: as many as the
    script asked for before `hvd.init()`.
    """

    def __init__(self) -> None:
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(
            graph=self._graph,
            config=tf.compat.v1.ConfigProto(
                inter_op_parallelism_threads=1,
                intra_op_parallelism_threads=tf.config.threading.get_intra_op_parallelism_threads(),
                use_per_session_threads=True,
                device_count={"GPU": 0},
            ),
        )
        self._operations: dict[tuple[Any, ...], _Operation] = {}
        self._callables: dict[tuple[_Operation, ...], Callable[..., Any]] = {}

    def operation(
        self, name: str, make: Callable[..., Any], dtypes: tuple[str, ...], **attributes: Any
    ) -> _Operation:
        """Return the node of this name and kind; all ranks make nodes in the same order."""
        key = (name, make, dtypes, *attributes.items())
        if key not in self._operations:
            with self._graph.as_default():
                feeds = [tf.compat.v1.placeholder(dtype, [None]) for dtype in dtypes]
                node = make(*feeds, name=name, **attributes)
            self._operations[key] = _Operation(node, feeds)
        return self._operations[key]

    def callable(self, operations: list[_Operation]) -> Callable[..., Any]:
        """Return what runs operations at once: `(*feeds) -> results`."""
        key = tuple(operations)
        if key not in self._callables:
            self._callables[key] = self._session.make_callable(
                [operation.node for operation in operations],
                [feed for operation in operations for feed in operation.feeds],
            )
        return self._callables[key]


def in_time(work: Callable[[], Any], name: str, collectives: Any) -> Any:
    """Return the result of what some ranks do together, or raise when it is not over in time.

    Horovod itself waits for ever for a rank that does not take part.

    Args:
        work: does it, in another thread.
        name: tells what it is.
        collectives: of the ranks.
    """
    return _Running(work).result(name, collectives)


class _Running:
    """What some ranks do together, in a thread of its own, as Horovod may wait for ever."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._results: list[Any] = []
        self._thread = threading.Thread(target=self._attempt, args=[work], daemon=True)
        self._thread.start()

    def _attempt(self, work: Callable[[], Any]) -> None:
        try:
            self._results.append(work())
        except BaseException as error:
            self._results.append(error)

    def is_done(self) -> bool:
        return bool(self._results)

    def result(self, name: str, collectives: Any) -> Any:
        """Wait for the result and return it, or raise as `in_time` does."""
        deadline = time.monotonic() + collectives.timeout
        with waits.waiting(name, collectives.ranks):
            while not self._results and time.monotonic() < deadline:
                self._thread.join(PAUSE)
                if not self._results:
                    check_waits()
                if waits.process_ends:
                    raise ExchangeTimeout.at_the_end(collectives.rank, name)
            if not self._results:
                raise ExchangeTimeout.after(collectives.timeout, collectives.rank, name)
            (result,) = self._results
            if isinstance(result, tf.errors.OpError):
                # After a page on where the node was made comes what happened.
                raise explained_in_exchange(
                    HorovodInternalError(result.message.split("\nNode: ")[-1])
                )
        if isinstance(result, BaseException):
            raise result
        return result

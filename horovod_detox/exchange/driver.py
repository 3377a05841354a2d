"""A thread that drives exchanges, so that the thread that computes gradients need not.

Horovod has one for the same reason. All of an exchange that is under way belongs to this thread:
whoever computes gradients hands it tasks, and waits for the result of the last.
"""

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from horovod_detox.exchange.waits import waits

POLL_SECONDS = 0.002
"""So often it is looked whether other ranks have sent something."""

T = TypeVar("T")
Task = Callable[[], Any]
"""What to do next. It returns a task to repeat until another is submitted, or None."""


class Driver:
    """A thread for the exchanges of one optimizer, which starts with the first task."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, task: Task) -> None:
        """Let a task be done, after those that were submitted before. It may not raise."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_run, args=[self._tasks], name="horovod_detox exchange", daemon=True
            )
            self._thread.start()
            atexit.register(self._end)
        self._tasks.put(task)

    def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns when it is its turn, or raise what it raises."""
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self.submit(task)
        return future.result()

    def close(self) -> None:
        """Let the thread end after the tasks that were submitted."""
        atexit.unregister(self._end)
        self._tasks.put(None)

    def _end(self) -> None:
        """End the thread with the process: it may be inside of compiled code, or wait for others.

        A daemon would be stopped there, which compiled code does not survive.
        """
        waits.end_with_the_process()
        self._tasks.put(None)
        if self._thread is not None:
            self._thread.join()


def _run(tasks: "SimpleQueue[Task | None]") -> None:
    """Do tasks, and what they ask for between two of them."""
    repeat: Task | None = None
    while True:
        try:
            task = tasks.get(timeout=POLL_SECONDS if repeat else None)
        except Empty:
            task = repeat
        if task is None:
            return
        repeat = task()
        del task  # whose owner may not be wanted any more

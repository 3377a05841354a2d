"""Where a thread is in its script, and whether it moves."""

import gc
import linecache
import operator
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

PACKAGE = str(Path(__file__).parents[1]) + os.sep
FOLDERS = {f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib")}
LIBRARIES = (*FOLDERS, PACKAGE, "<frozen", "<string>")
OF_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
LEAST_SHARE = 0.02
"""A thread that uses less of a processor stands still."""
MOST_FRAMES = 200
MOST_LETTERS = 60
"""Of a line of a script, so many are told."""


class Sampler:
    """Samples a thread of this process.

    Args:
        thread: None: the main thread.

    Attributes:
        still: for how many seconds it has stood still, when it was last sampled.
    """

    def __init__(self, thread: threading.Thread | None = None) -> None:
        self._ident = (thread or threading.main_thread()).ident or 0
        self._clock = time.pthread_getcpuclockid(self._ident)
        self._at = self._moved_at = time.monotonic()
        self._processor = self._processor_time()
        self._stack: tuple[tuple[int, int], ...] = ()
        self.still = 0.0

    def sample(self) -> str:
        """Return where the thread is, in words; note whether it has moved."""
        frame = _frames().get(self._ident)
        now, processor = time.monotonic(), self._processor_time()
        stack = tuple((id(each.f_code), each.f_lineno) for each in _outwards(frame))
        worked = processor - self._processor > LEAST_SHARE * (now - self._at)
        if worked or stack != self._stack:
            self._moved_at = now
        self._at, self._processor, self._stack = now, processor, stack
        self.still = now - self._moved_at
        return place(frame)

    def _processor_time(self) -> float:
        return time.clock_gettime(self._clock)


def _frames() -> dict[int, FrameType]:
    """Return the innermost frames of all threads.

    Python 3.11 may collect garbage meanwhile, with a lock for which that may wait, for ever: as for
    a `threading.local` (CPython's issue 106883). In a list of `map` the three calls are one for all
    threads.
    """
    if sys.version_info >= (3, 12) or not gc.isenabled():
        return sys._current_frames()
    calls: list[Callable[[], Any]] = [gc.disable, sys._current_frames, gc.enable]
    try:
        return [*map(operator.call, calls)][1]
    except BaseException:  # an audit hook may refuse it
        gc.enable()
        raise


def place(frame: FrameType | None) -> str:
    """Say where a frame is: the line of the script, and what was called there.

    >>> place(sys._getframe())  # doctest: +ELLIPSIS
    'at ...
    """
    callee = None
    for each in _outwards(frame):
        code = each.f_code
        if not is_library(code.co_filename):
            return _line(each, callee)
        if not code.co_filename.startswith(PACKAGE) and "<locals>" not in code.co_qualname:
            callee = each
    return "" if frame is None else _line(frame, None)


def place_of_error(trace: TracebackType | None) -> str:
    """Return the file and line of the script where an error was raised."""
    found = last = ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        last = f"{os.path.basename(name)}:{trace.tb_lineno}"
        found = found if is_library(name) else last
        trace = trace.tb_next
    return found or last


def is_library(file: str) -> bool:
    """Return whether a file is none of the script's own.

    >>> is_library(threading.__file__), is_library("train.py")
    (True, False)
    """
    return file.startswith(LIBRARIES) or any(part in file for part in OF_PACKAGES)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that called it."""
    for _ in range(MOST_FRAMES):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _line(frame: FrameType, callee: FrameType | None) -> str:
    """Say which line it is, what stands there, and what it has called."""
    code, number = frame.f_code, frame.f_lineno or 0  # between two lines there is none
    text = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    text = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."
    line = f"{os.path.basename(code.co_filename)}:{number}"
    if callee is None:
        return f"at {line}" + (f" ({text})" if text else "")
    return f"in {callee.f_code.co_qualname} ({line}{f': {text}' if text else ''})"

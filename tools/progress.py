"""How far a build is: the percentages that CMake's makefiles write into its log."""

import re
import sys
import time
from pathlib import Path
from typing import TextIO

TAIL = 20_000
"""Bytes at the end of a log in which the last percentage is looked for."""
STEP = 10
"""Percent between two lines where the output is no terminal."""


class Progress:
    """Tell how far a build is: in one line that changes on a terminal, else in a few lines.

    Args:
        log: what the build writes.
        output: where to tell it.
    """

    def __init__(self, log: Path, output: TextIO = sys.stderr) -> None:
        self._log, self._output = log, output
        self._start, self._told = time.monotonic(), -STEP
        self._is_line_open = False

    def look(self) -> None:
        """Look at the log, and tell what is new."""
        done = percent(self._log)
        if done is None:
            return
        text = f"    {done:3} % compiled after {clock(time.monotonic() - self._start)}"
        if self._output.isatty():
            print(f"\r{text}", end="", file=self._output, flush=True)
            self._is_line_open = True
        elif done >= self._told + STEP:
            self._told = done
            print(text, file=self._output, flush=True)

    def end(self) -> None:
        """End the line that changes."""
        if self._is_line_open:
            print(file=self._output, flush=True)
            self._is_line_open = False


def percent(log: Path) -> int | None:
    """Return the last percentage in a log; None: there is none yet."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        found = re.findall(rb"^ *\[ *(\d+)%\] ", file.read(), re.MULTILINE)
    return int(found[-1]) if found else None


def clock(seconds: float) -> str:
    """Write a time in minutes and seconds.

    >>> clock(83.4)
    '1:23'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"

"""Files that a process has written while nobody knew whether what it held was right."""

import atexit
import logging
import os
import sys
from collections import deque
from contextlib import suppress
from typing import Any
from weakref import WeakSet, finalize

MOST_FILES = 8
"""So many files are followed at most: one that is removed meanwhile still takes its space."""
WRONG = ".wrong"
"""What is appended to the name of a file that holds a wrong state."""
_LINKS = "/proc/self/fd"

log = logging.getLogger("horovod_detox")


class File:
    """A file that was written, followed when it is renamed.

    Args:
        target: a path, or an open file.
    """

    def __init__(self, target: Any) -> None:
        self._name = f"a {type(target).__name__}"
        self._descriptor: int | None = None
        with suppress(OSError, TypeError, ValueError, AttributeError):
            path = target if isinstance(target, (str, os.PathLike)) else target.fileno()
            path = f"{_LINKS}/{path}" if isinstance(path, int) else os.fspath(path)
            self._name = str(path)
            self._descriptor = os.open(path, os.O_PATH)
            finalize(self, os.close, self._descriptor)

    def path(self) -> str:
        """Return what it is called now; "" if it is gone, or no file of this machine."""
        path = "" if self._descriptor is None else os.readlink(f"{_LINKS}/{self._descriptor}")
        return path if os.path.exists(path) else ""

    def set_aside(self) -> str:
        """Take the file's name from it; return what it is called now, or "" if it is gone."""
        if self._descriptor is None:
            return self._name
        path = self.path()
        if not path or path.endswith(WRONG):
            return path
        try:
            os.replace(path, path + WRONG)
        except OSError as error:
            return f"{path}, which cannot be renamed: {error.strerror}"
        return path + WRONG


class Unconfirmed:
    """The files that were written since what a rank holds was last compared, the latest of them."""

    def __init__(self) -> None:
        self._files: deque[File] = deque(maxlen=MOST_FILES)

    def __bool__(self) -> bool:
        return bool(self._files)

    def note(self, file: File) -> None:
        """Note that one was written."""
        self._files.append(file)

    def take(self) -> list[File]:
        """Return them, and begin anew."""
        files = list(self._files)
        self._files.clear()
        return files


class Files:
    """What a process writes: each of its engines compares, and confirms, for itself.

    At the end of the process it is told which files hold what has been compared with nobody.
    """

    def __init__(self) -> None:
        self._readers: WeakSet[Unconfirmed] = WeakSet()
        self._late: deque[File] = deque(maxlen=MOST_FILES)
        self._is_compared = False

    def unconfirmed(self) -> Unconfirmed:
        """Return where files are listed from now on, until they are taken."""
        reader = Unconfirmed()
        self._readers.add(reader)
        return reader

    def note(self, target: Any, is_held: bool = False) -> None:
        """Note that a file was written.

        Args:
            target: its path, or the open file.
            is_held: whether it holds for certain what is compared with other ranks.
        """
        readers = list(self._readers)
        if not readers:
            return
        file = File(target)
        for reader in readers:
            reader.note(file)
        if is_held and not self._is_compared:
            self._late.append(file)
            atexit.unregister(self._tell_of_late)
            atexit.register(self._tell_of_late)

    def begin(self) -> None:
        """Note that an exchange begins: files are compared in it, and what is held changes."""
        self._late.clear()
        self._is_compared = False

    def confirm(self) -> None:
        """Note that what is held was compared, and is the same until an exchange begins."""
        self._late.clear()
        self._is_compared = True

    def _tell_of_late(self) -> None:
        """Warn of files that were compared with nobody, unless the script has failed."""
        names = ", ".join(filter(None, (file.path() for file in self._late)))
        if names and getattr(sys, "last_value", None) is None:
            log.warning(
                "saved after the last exchange, and compared with no other rank: %s (call "
                "hvd.scrub() on all ranks before or after saving)",
                names,
            )

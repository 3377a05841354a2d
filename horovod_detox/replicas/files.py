"""Files that a process has written while nobody knew whether what it held was right."""

import os
from collections import deque
from contextlib import suppress
from typing import Any
from weakref import WeakSet, finalize

MOST_FILES = 8
"""So many files are followed at most: one that is removed meanwhile still takes its space."""
WRONG = ".wrong"
"""What is appended to the name of a file that holds a wrong state."""
_LINKS = "/proc/self/fd"


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

    def set_aside(self) -> str:
        """Take the file's name from it; return what it is called now, or "" if it is gone."""
        if self._descriptor is None:
            return self._name
        path = os.readlink(f"{_LINKS}/{self._descriptor}")
        if not os.path.exists(path):
            return ""
        if path.endswith(WRONG):
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
    """What a process writes: each of its engines compares, and confirms, for itself."""

    def __init__(self) -> None:
        self._readers: WeakSet[Unconfirmed] = WeakSet()

    def unconfirmed(self) -> Unconfirmed:
        """Return where files are listed from now on, until they are taken."""
        reader = Unconfirmed()
        self._readers.add(reader)
        return reader

    def note(self, target: Any) -> None:
        """Note that a file was written: its path, or the open file."""
        readers = list(self._readers)
        if readers:
            file = File(target)
            for reader in readers:
                reader.note(file)

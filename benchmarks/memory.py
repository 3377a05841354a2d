"""How much memory an action needs: the kernel's high-water mark of this process (Linux, glibc)."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_growth(action: Callable[[], Any]) -> int:
    """Return by how many bytes the resident memory grows at most during an action."""
    settle()  # free memory that would be used again would not count
    before = _bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, see proc(5)
    action()
    return _bytes("VmHWM") - before


def settle() -> None:
    """Give memory that is free back to the kernel, which glibc would keep."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")

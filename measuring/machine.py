"""What a measurement ran on, in words."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("horovod", "torch", "tensorflow-cpu", "numpy", "numba")
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "sve", "asimd")


def describe(*notes: str) -> str:
    """Return a Markdown list of the machine, the versions, some notes and the date.

    It holds no names of hosts, and no paths.
    """
    cpu = _fields("/proc/cpuinfo")
    memory = int(_fields("/proc/meminfo").get("MemTotal", "0 kB").split()[0]) / 2**20
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    extensions = ", ".join(name for name in INSTRUCTIONS if name in flags)
    versions = [f"Python {platform.python_version()}", *filter(None, map(_version, PACKAGES))]
    lines = [
        f"{os.cpu_count()} cores: {cpu.get('model name', platform.machine())} ({extensions}); "
        f"{memory:.0f} GiB of memory",
        f"{platform.system()} {platform.release().split('-')[0]}, {', '.join(versions)}",
        *notes,
        f"{datetime.date.today()}",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _fields(path: str) -> dict[str, str]:
    """Read `name: value` lines; of repeated names, the first."""
    fields: dict[str, str] = {}
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package).split('+')[0]}"
    except PackageNotFoundError:
        return None

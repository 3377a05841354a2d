"""Gather what a machine without network lacks to test on its GPU: some 40 MiB.

    python tools/gather.py build/gathered --python 3.12

The machine must have that Python with a CUDA build of torch, which brings NCCL, NumPy and Numba;
nvcc, a C++ compiler and make. Copy the folder there, to the same place in a clone, and run `make
test-gpu`, `make test-nccl` or `make bench-gpu`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from build_horovod import BUILD_TOOLS, HOROVOD

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
THERE = {"llvmlite", "numba", "numpy", "torch"}
"""What the machine must have: too large to be gathered, or a matter of its GPU."""
TESTS = {"hypothesis", "pytest", "pytest-timeout"}
"""What the tests on a GPU need, of all that tests need."""
HOROVOD_NEEDS = ("cffi", "cloudpickle", "packaging", "psutil", "pyyaml")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")


def main() -> None:
    """Gather what a machine without network lacks to test on its GPU."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="{}.{}".format(*sys.version_info))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    gather_wheels(options.folder, options.python)
    gather_horovod(options.folder)
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    print(f"{size / 2**20:.0f} MiB for Python {options.python} in {options.folder}")


def requirements(project: dict[str, Any]) -> list[str]:
    """Return what is to be installed on the machine, as pip takes it.

    >>> requirements(
    ...     {"dependencies": ["numpy>=2", "rich>=13"],
    ...      "optional-dependencies": {"test": ["ruff==0.17", "pytest>=9"]}})[:2]
    ['rich>=13', 'pytest>=9']
    """
    ours = [each for each in project["dependencies"] if _name(each) not in THERE]
    tests = [each for each in project["optional-dependencies"]["test"] if _name(each) in TESTS]
    return [*ours, *tests, *HOROVOD_NEEDS]


def gather_wheels(folder: Path, python: str) -> None:
    """Download wheels for a Python on x86-64 Linux, with all that they need and is not there."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    wanted = [*requirements(project), *BUILD_TOOLS]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    target = ["--python-version", python, *platforms, "--only-binary", ":all:"]
    _pip("download", "--dest", str(folder), *target, *wanted)
    for path in folder.iterdir():
        if _name(path.name.partition("-")[0]) in THERE:
            path.unlink()


def gather_horovod(folder: Path) -> None:
    """Download Horovod's source, whose setup.py needs the build tools to tell its name."""
    with tempfile.TemporaryDirectory() as tools:
        _pip("install", "--target", tools, *BUILD_TOOLS)
        source = ["--no-binary", "horovod", "--no-deps", f"horovod=={HOROVOD}"]
        options = ["--dest", str(folder), "--no-build-isolation", *source]
        _pip("download", *options, PYTHONPATH=tools)


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    subprocess.run(command, env=os.environ | environment, check=True)


def _name(requirement: str) -> str:
    """Return the name of a project in a requirement, or in that of a file."""
    found: Iterable[str] = re.findall(r"^[\w.-]+", requirement)
    return next(iter(found)).lower().replace("_", "-")


if __name__ == "__main__":
    main()

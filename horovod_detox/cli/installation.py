"""Whether a job can run on this machine: what is installed, and what to do where it is not."""

import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from horovod_detox.arrays import compilation
from horovod_detox.config import Detox
from horovod_detox.remedies import REMEDIES

FRAMEWORKS = {"torch": "pytorch", "tensorflow": "tensorflow"}
"""The frameworks, and what Horovod's metadata.json calls them."""

BUILD = REMEDIES["horovod"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: was found.
        remedy: what to do about it; empty: nothing, it is as it should be.
    """

    what: str
    remedy: str = ""

    def __str__(self) -> str:
        """Tell it, and the remedy in a line of its own."""
        if not self.remedy:
            return f"ok       {self.what}"
        return f"PROBLEM  {self.what}\n         {self.remedy}"


def frameworks_of(metadata: dict[str, str], wanted: str | None = None) -> list[str]:
    """Return the frameworks that Horovod was built for, or the one that is wanted.

    Raises:
        ValueError: when it was not built for that one, or for none.
    """
    built = [name for name, called in FRAMEWORKS.items() if called in metadata]
    if wanted in built:
        return [wanted]
    if wanted is not None or not built:
        there = f"for {' and '.join(built)} only" if built else "without any framework"
        raise ValueError(
            f"Horovod was built {there}: install {wanted or 'torch or tensorflow'} and run {BUILD}"
        )
    return built


def horovod_metadata() -> dict[str, str]:
    """Return what Horovod was built for, without importing it.

    Raises:
        ModuleNotFoundError: when there is no Horovod.
    """
    spec = importlib.util.find_spec("horovod")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'horovod'", name="horovod")
    return json.loads(Path(spec.origin).with_name("metadata.json").read_text())


def examine(frameworks: Sequence[str], metadata: dict[str, str]) -> Iterator[Finding]:
    """Look at everything that a job with these frameworks needs."""
    for framework in frameworks:
        yield from _framework(framework, metadata[FRAMEWORKS[framework]])
    yield from (check() for check in CHECKS)


def _framework(name: str, built_for: str) -> Iterator[Finding]:
    """Look at a framework, and at Horovod's frontend for it."""
    try:
        framework, frontend = import_module(name), import_module(f"horovod.{name}")
    except Exception as error:  # of a library that does not fit, whatever it raises
        text = f"horovod.{name} does not load: {type(error).__name__}: {error}"
        yield Finding(text, f"build Horovod again for what is installed: {BUILD}")
        return
    version = framework.__version__
    if version != built_for:
        text = f"{name} is {version}, and Horovod was built for {built_for}"
        yield Finding(text, f"build Horovod again: {BUILD}")
    else:
        horovod = import_module("horovod").__version__
        yield Finding(f"{name} {version}, for which Horovod {horovod} was built")
    yield _transport(name, frontend)
    if name == "tensorflow":
        yield _keras()


def _transport(name: str, frontend: Any) -> Finding:
    """Look at how ranks can talk to each other."""
    built = {
        "Gloo": frontend.gloo_built(),
        "MPI": frontend.mpi_built(),
        "NCCL": frontend.nccl_built(),
    }
    there = [transport for transport, is_built in built.items() if is_built]
    text = f"horovod.{name} was built with {', '.join(there) or 'neither Gloo nor MPI'}"
    if not (built["Gloo"] or built["MPI"]):
        return Finding(text, f"build it again with HOROVOD_WITH_GLOO=1: {BUILD}")
    return Finding(text)


def _keras() -> Finding:
    """Look at Keras: the frontends are for Keras 3."""
    keras = import_module("keras")
    text, major = f"Keras {keras.__version__}", int(keras.__version__.partition(".")[0])
    if major < 3:
        return Finding(text, "horovod_detox works with Keras 3: pip install 'keras>=3'")
    if os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true"):
        return Finding(f"{text}, but tf.keras is Keras 2", "unset TF_USE_LEGACY_KERAS")
    if (backend := keras.backend.backend()) != "tensorflow":
        return Finding(f"{text} runs on {backend}", "set KERAS_BACKEND=tensorflow")
    return Finding(text)


def _host_name() -> Finding:
    """Look up the machine's own name, without which Gloo crashes."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        text = f"this machine cannot look up its own name, {name}: Gloo jobs crash here"
        return Finding(text, f"add the line '127.0.0.1 {name}' to /etc/hosts")
    return Finding(f"host name {name}")


def _launcher() -> Finding:
    """Look for horovodrun, and for what it imports."""
    path = shutil.which("horovodrun") or shutil.which(
        "horovodrun", path=Path(sys.executable).parent
    )
    if path is None:
        return Finding("horovodrun is not installed", f"install Horovod into this Python: {BUILD}")
    if importlib.util.find_spec("distutils") is None and not importlib.util.find_spec("setuptools"):
        text = f"horovodrun needs distutils, which Python {platform.python_version()} lacks"
        return Finding(text, "pip install 'setuptools<81'")
    return Finding("horovodrun")


def _kernels() -> Finding:
    """Load the column kernels, or compile them."""
    try:
        compilation.prepare()
    except Exception as error:  # of a compiler, whatever it raises
        text = f"the aggregation rules do not compile: {type(error).__name__}: {error}"
        return Finding(text, "install the numba and numpy that pip chooses: pip install -U numba")
    return Finding("aggregation rules are compiled")


def _variables() -> Finding:
    """Read the settings in the environment."""
    try:
        config = Detox.from_environment()
    except ValueError as error:
        return Finding(str(error), "correct or unset the variable")
    return Finding(f"settings in HOROVOD_DETOX_* variables: groups of {config.group_size}")


CHECKS: tuple[Callable[[], Finding], ...] = (_host_name, _launcher, _kernels, _variables)
"""What does not depend on the framework."""

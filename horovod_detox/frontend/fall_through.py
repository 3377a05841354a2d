"""What Horovod's modules have and ours do not replace, private names included, is Horovod's."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def fall_through(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of one of our modules, which asks Horovod's of the same name.

    >>> fall_through("horovod_detox.common.util")("__path__")
    Traceback (most recent call last):
    AttributeError: module 'horovod_detox.common.util' has no attribute '__path__'
    """
    theirs = "horovod" + module.removeprefix("horovod_detox")

    def find(name: str) -> Any:
        # A submodule of ours is to be imported, not to be found in Horovod's.
        if not name.startswith("__") and not _is_submodule(module, name):
            found = vars(import_module(theirs))
            if name in found:
                return found[name]
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def _is_submodule(module: str, name: str) -> bool:
    is_package = getattr(import_module(module), "__path__", None) is not None
    return is_package and find_spec(f"{module}.{name}") is not None

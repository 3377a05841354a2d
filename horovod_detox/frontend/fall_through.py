"""What Horovod has and ours do not replace is Horovod's: names, private ones too, and modules."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

FRONTENDS = ("horovod_detox.torch.", "horovod_detox.tensorflow.", "horovod_detox.keras.")


def fall_through(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of one of our modules, which asks Horovod's of the same name.

    >>> fall_through("horovod_detox.common.util")("__path__")
    Traceback (most recent call last):
    AttributeError: module 'horovod_detox.common.util' has no attribute '__path__'
    """
    theirs = _theirs(module)

    def find(name: str) -> Any:
        # A submodule of ours is to be imported, not to be found in Horovod's.
        if not name.startswith("__") and not _is_submodule(module, name):
            found = vars(import_module(theirs))
            if name in found:
                return found[name]
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def _theirs(module: str) -> str:
    return "horovod" + module.removeprefix("horovod_detox")


def _is_submodule(module: str, name: str) -> bool:
    path = getattr(import_module(module), "__path__", None)
    return path is not None and PathFinder.find_spec(f"{module}.{name}", path) is not None


class _Finder(MetaPathFinder):
    """Finds, after all others, Horovod's module where our frontends have none of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(FRONTENDS) or (found := find_spec(_theirs(fullname))) is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, _Copier(), is_package=is_package)


class _Copier(Loader):
    """Makes a module of what Horovod's has, as `from ... import *` does, private names included."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        theirs = vars(import_module(_theirs(module.__name__)))
        vars(module).update({k: v for k, v in theirs.items() if not k.startswith("__")})


sys.meta_path.append(_Finder())

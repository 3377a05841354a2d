"""Our frontends in the place of Horovod's, when a script imports them."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from horovod_detox.launcher.speech import refuse
from horovod_detox.launcher.stand_in import Script
from horovod_detox.remedies import REMEDIES

FRONTENDS = {
    "torch": ("horovod.torch",),
    "tensorflow": ("horovod.tensorflow", "horovod.tensorflow.keras", "horovod.keras"),
}
"""Horovod's frontends for each framework; ours have the same names in `horovod_detox`."""

BUILD = f"{REMEDIES['horovod']}, builds it"


class Finder(MetaPathFinder):
    """Finds ours where the script imports one of Horovod's frontends.

    Nothing of a framework is imported before the script does. A script that imports `horovod_detox`
    itself gets everything as it is.

    Attributes:
        replaced: the frameworks whose frontends were replaced.
    """

    def __init__(self, script: Script) -> None:
        self.replaced: set[str] = set()
        self._script = script

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the place of our module; None, as for all others, when it is Horovod's turn."""
        for framework, names in FRONTENDS.items():
            if fullname in names and framework not in self.replaced:
                if ours(names[0]) in sys.modules:
                    return None
                self.replaced.add(framework)  # from here on Horovod's own are found: ours need them
                self._replace(framework)
                return sys.modules[fullname].__spec__
        return None

    def _replace(self, framework: str) -> None:
        _check_built(framework)
        for name in FRONTENDS[framework]:
            import_module(ours(name))
            import_module(name)
        frontend = import_module(f"horovod_detox.{framework}.script").take_over(self._script)
        for name in FRONTENDS[framework]:
            if name.count(".") == 1:  # those inside of others are replaced with them
                stand_in(sys.modules[name], sys.modules[ours(name)], {"init": frontend.init})


class _Loaded(Loader):
    """Loads what is there already."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass


def ours(name: str) -> str:
    """Return the name of our module for one of Horovod's.

    >>> ours("horovod.tensorflow.keras")
    'horovod_detox.tensorflow.keras'
    """
    return "horovod_detox" + name.removeprefix("horovod")


def stand_in(theirs: ModuleType, our: ModuleType, more: dict[str, Any]) -> ModuleType:
    """Put a module in the place of one of Horovod's: all of it, but ours where we have the name.

    Its submodules are replaced in the same way. What has imported it already keeps Horovod's.

    Args:
        theirs: the module of Horovod.
        our: our counterpart.
        more: what goes before ours, where our module has such a name.
    """
    module = ModuleType(theirs.__name__, theirs.__doc__)
    vars(module).update(vars(theirs))
    module.__spec__ = ModuleSpec(theirs.__name__, _Loaded())
    for name, value in vars(our).items():
        if name.startswith("_"):
            continue
        if not isinstance(value, ModuleType):
            setattr(module, name, more.get(name, value))
            continue
        inner = sys.modules.get(f"{theirs.__name__}.{name}")
        if inner is not None and inner is not value:
            setattr(module, name, stand_in(inner, value, more))
    sys.modules[theirs.__name__] = module
    parent, _, child = theirs.__name__.rpartition(".")
    setattr(sys.modules[parent], child, module)
    return module


def _check_built(framework: str) -> None:
    """Refuse to go on with a Horovod that lacks the frontend that the script imports."""
    (folder,) = import_module("horovod").__path__
    if not any((Path(folder) / framework).glob("mpi_lib*")):
        refuse(f"this Horovod was built without {framework}, which the script imports: {BUILD}")

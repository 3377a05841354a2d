"""What Horovod's modules have, and ours must have, too."""

from collections.abc import Iterable
from importlib import import_module


def missing_names(framework: str, modules: Iterable[str]) -> list[str]:
    """Return what some modules of Horovod have and ours of the same names have not."""
    missing = []
    for module in modules:
        path = ".".join([framework, module]).rstrip(".")
        theirs, ours = (import_module(f"{top}.{path}") for top in ("horovod", "horovod_detox"))
        names = [name for name in vars(theirs) if not name.startswith("__")]
        missing += [f"{path}.{name}" for name in names if not hasattr(ours, name)]
    return missing

"""What Horovod's modules have, and ours must have, too."""

import pkgutil
from importlib import import_module


def missing_names(framework: str) -> list[str]:
    """Return what the modules of one of Horovod's frontends have, and ours have not."""
    frontend = import_module(f"horovod.{framework}")
    found = pkgutil.walk_packages(frontend.__path__, f"horovod.{framework}.")
    missing = []
    modules = [
        module.name for module in found if "mpi_lib" not in module.name
    ]  # that are not python
    for path in (frontend.__name__, *modules):
        theirs, ours = import_module(path), import_module(path.replace("horovod", "horovod_detox"))
        names = [name for name in vars(theirs) if not name.startswith("__")]
        missing += [f"{path}.{name}" for name in names if not hasattr(ours, name)]
    return missing

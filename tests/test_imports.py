"""The core imports no framework: it serves all of them."""

import pkgutil
import subprocess
import sys

import pytest

import horovod_detox

FRAMEWORKS = {"torch", "tensorflow", "horovod", "keras", "jax"}
TENSORS = {"tensor_kernels", "tensor_digests"}
WITH_A_FRAMEWORK = {"torch", "tensorflow", "keras", *TENSORS, "lab", "commands.simulate"}


def core_modules() -> list[str]:
    names = ["horovod_detox"]
    for module in pkgutil.iter_modules(horovod_detox.__path__, "horovod_detox."):
        if module.name.removeprefix("horovod_detox.") in WITH_A_FRAMEWORK:
            continue
        names.append(module.name)
        if module.ispkg:
            package = __import__(module.name, fromlist=["_"])
            prefix = f"{module.name}."
            names += [found.name for found in pkgutil.walk_packages(package.__path__, prefix)]
    return [n for n in names if n.removeprefix("horovod_detox.") not in WITH_A_FRAMEWORK]


def frameworks_after_importing(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return FRAMEWORKS & set(output.split())


def test_the_core_imports_no_framework():
    modules = core_modules()
    assert {"horovod_detox.exchange.leaders", "horovod_detox.commands.plan"} <= {*modules}
    assert frameworks_after_importing(", ".join(modules)) == set()


def test_the_check_can_fail():
    pytest.importorskip("torch")
    assert frameworks_after_importing("torch") == {"torch"}


@pytest.mark.parametrize("name", sorted(horovod_detox.__all__))
def test_the_package_offers_what_it_says(name):
    assert hasattr(horovod_detox, name)

"""What is in the wheel, and what it depends on."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.test_imports import FRONTENDS, LAB, WITH_A_FRAMEWORK, below, modules
from tools.oldest import oldest

ROOT = Path(__file__).parents[2]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIGURATION["project"]


def needed(file: Path) -> set[str]:
    """Return the packages of others that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"horovod_detox"}


def test_what_the_package_imports_is_a_dependency():
    """But for frameworks, which their users have; and the laboratory's extra."""
    core = {*modules()} - WITH_A_FRAMEWORK - below((*FRONTENDS, LAB), modules())
    packages = set().union(*(needed(modules()[name]) for name in core))
    declared = {re.split(r"[<>=]", each)[0] for each in PROJECT["dependencies"]}
    optional = {"blake3"}
    packages = {"pyzmq" if name == "zmq" else name for name in packages}
    assert optional <= PROJECT["optional-dependencies"].keys()
    assert packages - {"torch", "tensorflow", "keras", "horovod"} - optional == declared


def test_measuring_tools_are_not_in_the_wheel():
    find_packages = pytest.importorskip("setuptools").find_namespace_packages
    include = CONFIGURATION["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = find_packages(ROOT, include=include)
    assert "horovod_detox.exchange" in packages
    assert {name.partition(".")[0] for name in packages} == {"horovod_detox"}
    assert not any(needed(path) & {"matplotlib", "measuring"} for path in modules().values())


def test_the_package_is_typed():
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "horovod_detox" / "py.typed").is_file()
    assert CONFIGURATION["tool"]["setuptools"]["package-data"] == {"horovod_detox": ["py.typed"]}


def test_every_dependency_has_a_lower_bound():
    assert oldest(PROJECT, PROJECT["optional-dependencies"])
    with pytest.raises(ValueError, match="'numpy' has no lower bound"):
        oldest({"dependencies": ["numpy"]}, [])

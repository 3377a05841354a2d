"""What imports what: the core imports no framework, and no two modules import each other."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

import horovod_detox

PACKAGE = Path(horovod_detox.__path__[0])
FRAMEWORKS = {"torch", "tensorflow", "horovod", "keras", "jax"}
WITH_A_FRAMEWORK = {
    "horovod_detox.arrays.device_digests",
    "horovod_detox.arrays.device_kernels",
    "horovod_detox.arrays.fused",
    "horovod_detox.cli.simulate",
    "horovod_detox.frontend.lost",
    "horovod_detox.frontend.verbs",
    "horovod_detox.packing.tensorflow",
    "horovod_detox.packing.torch",
}
FRONTENDS = ("horovod_detox.torch", "horovod_detox.tensorflow", "horovod_detox.keras")
LAB = "horovod_detox.lab"


@cache
def modules() -> Mapping[str, Path]:
    """Return the files of the package by the names of their modules."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("horovod_detox", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def below(packages: str | tuple[str, ...], names: Iterable[str]) -> set[str]:
    """Return the names that are packages, or modules inside of them."""
    packages = (packages,) if isinstance(packages, str) else packages
    return {name for name in names if f"{name}.".startswith(tuple(f"{p}." for p in packages))}


def imports(name: str) -> set[str]:
    """Return the modules of the package that a module names in its imports, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & modules().keys()) or {node.module}
    return found & modules().keys() - {name}


def circles(graph: Mapping[str, set[str]]) -> set[str]:
    """Return the nodes from which a way leads back to them."""

    def reached(start: str) -> set[str]:
        seen, to_do = set(), [*graph[start]]
        while to_do:
            if (node := to_do.pop()) not in seen:
                seen.add(node)
                to_do += graph[node]
        return seen

    return {node for node in graph if node in reached(node)}


def after_importing(names: Iterable[str]) -> set[str]:
    """Return what a new process has imported after some modules."""
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return set(output.split())


def test_the_core_imports_no_framework():
    core = {*modules()} - WITH_A_FRAMEWORK - below((*FRONTENDS, LAB), modules())
    core -= {"horovod_detox.__main__"}
    assert {"horovod_detox.exchange.leaders", "horovod_detox.cli.plan"} <= core
    assert after_importing(sorted(core)) & FRAMEWORKS == set()


def test_the_check_can_fail():
    pytest.importorskip("torch")
    assert after_importing(["torch"]) & FRAMEWORKS == {"torch"}


def test_the_laboratory_does_without_horovod():
    pytest.importorskip("torch")
    loaded = after_importing([*sorted(below(LAB, modules())), "horovod_detox.cli.simulate"])
    assert "horovod_detox.lab.simulation" in loaded
    assert loaded & FRAMEWORKS == {"torch"}
    assert not below(FRONTENDS, loaded)


def test_no_two_modules_import_each_other():
    assert circles({name: imports(name) for name in modules()}) == set()


def test_no_two_rooms_import_each_other():
    """A room is a folder; what lies in the root is a room each."""

    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    graph: dict[str, set[str]] = {room(name): set() for name in modules()}
    for name in modules():
        graph[room(name)] |= {room(each) for each in imports(name)} - {room(name)}
    graph["horovod_detox"] = set()  # which only hands names on
    assert circles(graph) == set()


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


def test_only_the_console_script_imports_its_modules():
    for name in {*modules()} - below("horovod_detox.cli", modules()):
        assert not below("horovod_detox.cli", imports(name)), name


def test_the_root_is_the_spine():
    """Everything else is in a room named by what it knows."""
    root = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(root) <= 8
    assert {"config", "engine", "history", "drill"} <= root


def test_no_file_is_too_long_to_be_read():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert max(lengths.values()) <= 400, max(lengths, key=lengths.__getitem__)


@pytest.mark.parametrize("name", sorted(horovod_detox.__all__))
def test_the_package_offers_what_it_says(name):
    assert hasattr(horovod_detox, name)

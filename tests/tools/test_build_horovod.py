"""What the recipe builds, when it builds again, and what it says without a compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nccl
import pytest

from tools import build_horovod

BOTH = {"pytorch": "2.13.0+cpu", "tensorflow": "2.21.0"}
TORCH = {"pytorch": "2.14.1+cu130"}


def environment_for(
    frameworks: dict[str, str], extras: tuple[str, ...] = (), **inherited: str
) -> dict[str, str]:
    return build_horovod.build_environment(inherited, Path("build-tools"), frameworks, extras)


@pytest.fixture
def cuda(tmp_path, monkeypatch):
    """Return a folder that looks like a CUDA toolkit, of 13.0, beside which NCCL is installed."""
    home = tmp_path / "cuda"
    write(home / "bin" / "nvcc", "#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.88")
    write(home / "include" / "cuda_runtime.h", "")
    folder = tmp_path / "nvidia" / "nccl"
    lines = "#define NCCL_MAJOR 2\n#define NCCL_MINOR 30\n#define NCCL_PATCH 7\n"
    write(folder / "include" / "nccl.h", lines)
    write(folder / "lib" / "libnccl.so.2", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    return home


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("changed", build_horovod.build_facts(BOTH))
def test_every_fact_changes_the_wheel(changed):
    facts = build_horovod.build_facts(BOTH)
    assert facts[changed]
    other = facts | {changed: "other"}
    assert build_horovod.wheel_version(facts) != build_horovod.wheel_version(other)


def test_equal_facts_find_the_wheel_again():
    facts = build_horovod.build_facts(BOTH)
    again = dict(reversed(facts.items()))
    assert build_horovod.wheel_version(facts) == build_horovod.wheel_version(again)


def test_one_framework_is_another_wheel_than_both():
    kinds = [BOTH, {"pytorch": BOTH["pytorch"]}, {"tensorflow": BOTH["tensorflow"]}]
    versions = {build_horovod.wheel_version(build_horovod.build_facts(kind)) for kind in kinds}
    assert len(versions) == len(kinds)


def test_the_recipe_names_existing_files():
    names = {path.name for path in build_horovod.RECIPE if path.exists()}
    assert {"build_horovod.py", "nccl.py", "horovod.cmake", "toolchain.cmake"} <= names
    assert build_horovod.TOOLCHAIN.exists()


@pytest.mark.parametrize(
    ("header", "standard"),
    [
        ("#error C++17 or later compatible compiler is required to use ATen.", 17),
        ("#error C++20 or later compatible compiler is required to use ATen.", 20),
        ("#error C++14 or later compatible compiler is required to use ATen.", 17),
        ("#include <ATen/Context.h>", 17),
    ],
)
def test_cxx_standard(header, standard):
    assert build_horovod.cxx_standard(header) == standard


@pytest.mark.parametrize(
    ("frameworks", "switches"),
    [
        (BOTH, {"WITH_PYTORCH", "WITH_TENSORFLOW"}),
        ({"pytorch": "2.13.0"}, {"WITH_PYTORCH", "WITHOUT_TENSORFLOW"}),
        ({"tensorflow": "2.21.0"}, {"WITHOUT_PYTORCH", "WITH_TENSORFLOW"}),
    ],
)
def test_switches_name_every_framework(frameworks, switches):
    environment = environment_for(frameworks)
    on = {name.removeprefix("HOROVOD_") for name, text in environment.items() if text == "1"}
    always = {"WITH_GLOO", "WITHOUT_MPI", "WITHOUT_MXNET", "WITHOUT_NVTX"}
    assert on == switches | always


def test_nothing_inherited_turns_on_cuda_or_mpi():
    environment = environment_for(
        BOTH,
        CUDA_HOME="/cuda",
        CUDACXX="/cuda/bin/nvcc",
        HOROVOD_CUDA_HOME="/cuda",
        HOROVOD_GPU_OPERATIONS="NCCL",
        HOROVOD_WITH_MPI="1",
        MAKEFLAGS="n",
        PATH="/bin",
    )
    inherited = {"CUDA_HOME", "CUDACXX", "HOROVOD_CUDA_HOME", "HOROVOD_GPU_OPERATIONS"}
    assert not inherited & environment.keys()
    assert "HOROVOD_WITH_MPI" not in environment
    assert environment["MAKEFLAGS"].startswith("-j")
    assert environment["PATH"].endswith(f"{os.pathsep}/bin")


def test_a_missing_framework_is_noticed():
    metadata = json.dumps({"pytorch": "2.13.0+cpu", "dummy": "none"})
    build_horovod.require_frameworks(metadata, {"pytorch": "2.13.0+cpu"})
    with pytest.raises(SystemExit, match="wanted for"):
        build_horovod.require_frameworks(metadata, BOTH)
    with pytest.raises(SystemExit, match="wanted for"):
        build_horovod.require_frameworks(metadata, {"tensorflow": "2.21.0"})


def test_a_missing_compiler_gives_one_clear_line(tmp_path):
    command = [sys.executable, build_horovod.__file__, "--prepare"]
    result = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "needs a C++ compiler, make" in result.stderr
    assert "apt-get install g++ make" in result.stderr


def test_a_failed_command_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "log"
    script = "print(*range(100), sep='\\n'); raise SystemExit(3)"
    with pytest.raises(SystemExit) as failure:
        build_horovod.run([sys.executable, "-c", script], log, dict(os.environ))
    lines = str(failure.value).splitlines()
    assert lines[0] == "70"
    assert lines[-1] == f"Failed with exit code 3. Log: {log}"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HOROVOD_DETOX_CACHE", raising=False)
    assert build_horovod.cache_folder() == tmp_path / "horovod_detox"
    monkeypatch.setenv("HOROVOD_DETOX_CACHE", str(tmp_path / "elsewhere"))
    assert build_horovod.cache_folder() == tmp_path / "elsewhere"


def test_mpi_is_built_in_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(build_horovod, "mpi_version", lambda: "mpirun (Open MPI) 4.1.4")
    plain, mpi = (build_horovod.build_facts(BOTH, extras) for extras in ([], ["mpi"]))
    assert mpi == plain | {"mpi": "mpirun (Open MPI) 4.1.4"}
    environment = environment_for(BOTH, ("mpi",))
    assert (environment["HOROVOD_WITH_MPI"], environment["HOROVOD_WITH_GLOO"]) == ("1", "1")
    assert "HOROVOD_WITHOUT_MPI" not in environment


def test_missing_packages_of_mpi_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = build_horovod.missing_system_packages
    needed = {*missing(["mpi"], False).values()} - {*missing([], False).values()}
    assert needed == {"libopenmpi-dev", "openmpi-bin"}


def test_nccl_comes_with_its_versions_and_switches(cuda, tmp_path, monkeypatch):
    torch = write(tmp_path / "torch" / "version.py", "cuda: Optional[str] = '13.2'\n").parent
    monkeypatch.setattr(build_horovod, "torch_folder", lambda: torch)
    write(torch / "include" / "ATen" / "ATen.h", "")
    monkeypatch.setenv("CUDA_HOME", str(cuda))
    monkeypatch.delenv(nccl.ARCHITECTURES, raising=False)
    plain, facts = (build_horovod.build_facts(TORCH, extras) for extras in ([], ["nccl"]))
    assert facts == plain | {"cuda": "13.0", "nccl": "2.30.7", "architectures": "all"}
    monkeypatch.setenv(nccl.ARCHITECTURES, "80,90")
    assert build_horovod.build_facts(TORCH, ["nccl"]) == facts | {"architectures": "80,90"}
    tools = tmp_path / "tools"
    environment = build_horovod.build_environment(os.environ, tools, TORCH, ["nccl"])
    assert environment["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert environment["HOROVOD_CUDA_HOME"] == str(cuda)
    assert environment[nccl.ARCHITECTURES] == "80,90"
    link = Path(environment["HOROVOD_NCCL_LIB"]) / "libnccl.so"
    assert link.resolve() == tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2"


def test_an_nvcc_without_headers_is_not_a_toolkit(cuda, tmp_path):
    wrapper = write(tmp_path / "local" / "bin" / "nvcc", "#!/bin/sh\n")
    assert nccl.cuda_home({"PATH": str(cuda / "bin")}) == cuda
    assert nccl.cuda_home({"PATH": str(wrapper.parent), "CUDA_HOME": str(cuda)}) == cuda
    assert nccl.cuda_home({"CUDA_HOME": str(tmp_path), "PATH": str(cuda / "bin")}) == cuda


@pytest.mark.parametrize(
    ("version", "complaint"),
    [
        ("cuda: Optional[str] = None", "needs a CUDA build of torch"),
        ("cuda: Optional[str] = '12.8'", "torch is built for CUDA 12.8, and nvcc is of CUDA 13.0"),
    ],
)
def test_what_does_not_fit_nccl_is_said(cuda, tmp_path, version, complaint):
    torch = write(tmp_path / "torch" / "version.py", f"__version__ = '2'\n{version}\n").parent
    with pytest.raises(SystemExit, match=complaint):
        nccl.facts(torch, {"CUDA_HOME": str(cuda)})


def test_nccl_is_refused_beside_tensorflow(monkeypatch):
    monkeypatch.setattr(build_horovod, "installed_frameworks", lambda: BOTH)
    with pytest.raises(SystemExit, match="NCCL is for torch alone"):
        build_horovod.main(["--nccl"])

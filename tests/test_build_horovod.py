"""What the recipe builds, when it builds again, and what it says without a compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import build_horovod

BOTH = {"pytorch": "2.13.0+cpu", "tensorflow": "2.21.0"}


def environment_for(frameworks: dict[str, str], **inherited: str) -> dict[str, str]:
    return build_horovod.build_environment(inherited, Path("build-tools"), frameworks)


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
    assert {path.suffix for path in build_horovod.RECIPE} == {".py", ".cmake"}
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

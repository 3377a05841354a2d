"""What a build with NCCL needs beyond one without: a CUDA toolkit, and torch's own NCCL."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ARCHITECTURES = "HOROVOD_BUILD_CUDA_CC_LIST"
"""The variable with which Horovod is told what to compile its kernels for: 80,90."""


def facts(torch: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the versions that make one wheel with NCCL differ from another.

    Exits with the reason if Horovod cannot be built with NCCL here.

    Args:
        torch: the folder of the installed torch.
        environment: that of this process.
    """
    wanted = torch_cuda((torch / "version.py").read_text())
    if wanted is None:
        sys.exit("NCCL needs a CUDA build of torch, and the installed one has no CUDA.")
    found = toolkit_release(cuda_home(environment))
    if found.split(".")[0] != wanted.split(".")[0]:
        sys.exit(f"torch is built for CUDA {wanted}, and nvcc is of CUDA {found}.")
    return {
        "cuda": found,
        "nccl": nccl_version(nccl_folder() / "include"),
        "architectures": environment.get(ARCHITECTURES, "all"),
    }


def switches(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make Horovod build with NCCL.

    Args:
        folder: where a link to the library may be made.
        environment: that of this process.
    """
    nccl, home = nccl_folder(), str(cuda_home(environment))
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libnccl.so"  # which the linker looks for, and torch's wheel lacks
    link.unlink(missing_ok=True)
    link.symlink_to(nccl / "lib" / "libnccl.so.2")
    kept = {ARCHITECTURES: environment[ARCHITECTURES]} if ARCHITECTURES in environment else {}
    return kept | {
        "CUDA_HOME": home,
        "HOROVOD_CUDA_HOME": home,
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_INCLUDE": str(nccl / "include"),
        "HOROVOD_NCCL_LIB": str(folder),
        "HOROVOD_NCCL_LINK": "SHARED",
    }


def torch_cuda(version: str) -> str | None:
    """Return the CUDA release named in the text of torch's version.py."""
    found = re.search(r"^cuda: .*= '(.+)'", version, re.MULTILINE)
    return found[1] if found else None


def cuda_home(environment: Mapping[str, str]) -> Path:
    """Return the folder of the CUDA toolkit; exit if there is none."""
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    # An nvcc on the PATH may be a script that runs another one: it has no headers beside it.
    candidates = [
        environment.get("CUDA_HOME"),
        os.path.realpath(nvcc).removesuffix("/bin/nvcc") if nvcc else None,
        "/usr/local/cuda",
    ]
    for candidate in filter(None, candidates):
        home = Path(candidate)
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home
    sys.exit("NCCL needs a CUDA toolkit: set CUDA_HOME to the folder that has bin/nvcc.")


def toolkit_release(home: Path) -> str:
    """Return the release of a CUDA toolkit."""
    command = [str(home / "bin" / "nvcc"), "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"release ([\d.]+)", output)[0]


def nccl_folder() -> Path:
    """Return the folder with `include` and `lib` of the NCCL wheel that torch needs."""
    spec = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nccl")
    if not spec or not spec.submodule_search_locations:
        sys.exit("NCCL is missing: torch's CUDA wheels bring it, as nvidia-nccl-cu13 for CUDA 13.")
    return Path(next(iter(spec.submodule_search_locations)))


def nccl_version(include: Path) -> str:
    """Return the version in NCCL's header."""
    header = (include / "nccl.h").read_text()
    parts = ("MAJOR", "MINOR", "PATCH")
    return ".".join(re.findall(rf"#define NCCL_{part} (\d+)", header)[0] for part in parts)

"""Make an environment for the tests on a GPU: with the torch that is here, or else a new one.

    python tools/gpu_environment.py .venv-gpu --torch 2.14.1 --gathered build/gathered

Where the running Python has a CUDA build of torch, the environment sees all that this Python has.
Else torch is installed, some 5 GB. What was gathered by `tools/gather.py` is taken instead of the
network.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from build_horovod import torch_folder
from gather import PROJECT, requirements
from nccl import torch_cuda
from require_gpu import DRIVER


def main() -> None:
    """Make an environment for the tests on a GPU, or complete it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", required=True, help="the version to install, if there is none")
    parser.add_argument("--gathered", type=Path, default=Path("build/gathered"))
    options = parser.parse_args()
    python = options.folder / "bin" / "python"
    there = torch_that_is_here()
    if not python.exists():
        bare = ["--without-pip"] if there else []
        subprocess.run([sys.executable, "-m", "venv", *bare, str(options.folder)], check=True)
    if there:
        see(python, there.parent)
    wanted = requirements(tomllib.loads(PROJECT.read_text())["project"])
    if not there:
        wanted += ["numba", "numpy", f"torch=={options.torch}"]
    offline = offline_environment(options.gathered.absolute())
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *wanted], env=os.environ | offline, check=True)
    link_driver(options.folder / "driver")
    print(
        f"{options.folder} is complete: {'this' if there else 'a new'} torch, "
        f"{'gathered files' if offline else 'the rest by pip'}",
        flush=True,
    )


def torch_that_is_here() -> Path | None:
    """Return the folder of the running Python's torch, if that is a CUDA build."""
    folder = torch_folder()
    if folder is None or torch_cuda((folder / "version.py").read_text()) is None:
        return None
    return folder


def see(python: Path, packages: Path) -> None:
    """Let an environment see the packages in a folder, and those of this Python, its own first.

    Their .pth files count, too: one of setuptools brings distutils, which Horovod's build needs.
    """
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    folders = dict.fromkeys([str(packages), sysconfig.get_path("purelib")])
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
    Path(own, "of_the_machine.pth").write_text("".join(lines))


def link_driver(folder: Path) -> None:
    """Make the link libcuda.so, which Horovod opens, to the driver's libcuda.so.1."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return
    maps = Path("/proc/self/maps").read_text()
    (path,) = {line.split()[-1] for line in maps.splitlines() if "/libcuda.so" in line}
    folder.mkdir(exist_ok=True)
    link = folder / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(path)


def offline_environment(gathered: Path) -> dict[str, str]:
    """Return the variables that make pip take gathered files; none if nothing was gathered."""
    if not gathered.is_dir():
        return {}
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(gathered)}


if __name__ == "__main__":
    main()

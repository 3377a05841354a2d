"""Build Horovod 0.28.1 with Gloo for the running Python, and install it there.

    python -m pip install torch            # and, or, tensorflow
    python tools/build_horovod.py          # --mpi: also with MPI; --nccl: GPUs talk by NCCL

Horovod has no wheels, and its source distribution does not compile against current
frameworks as it is. This builds it, unedited, for the torch and TensorFlow of this environment.
The wheel is kept in a cache folder, so that only the first run takes minutes.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import nccl
from progress import Progress

HOROVOD = "0.28.1"
# setuptools 81 dropped what Horovod's setup.py uses; CMake 4 refuses the Gloo inside Horovod.
BUILD_TOOLS = ("setuptools<81", "wheel", "packaging", "cmake>=3.21,<4")
RECIPE = (
    Path(__file__),
    Path(nccl.__file__),
    *sorted((Path(__file__).parent / "cmake").glob("*.cmake")),
)
TOOLCHAIN = Path(__file__).resolve().parent / "cmake" / "toolchain.cmake"
MODULES = {"pytorch": "horovod.torch", "tensorflow": "horovod.tensorflow"}
EXTRAS = ("mpi", "nccl")
LOOK_SECONDS = 1.0
"""Between two looks at the progress of a build."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Build Horovod, or take it from the cache, and install it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--wheel-only", action="store_true", help="only print the wheel's path")
    parser.add_argument("--prepare", action="store_true", help="only look for a compiler etc.")
    parser.add_argument("--mpi", action="store_true", help="with MPI beside Gloo")
    parser.add_argument("--nccl", action="store_true", help="GPUs exchange with NCCL; torch alone")
    options = parser.parse_args(arguments)
    extras = [extra for extra in EXTRAS if getattr(options, extra)]
    if options.prepare:
        require_system_packages(extras, venv=True)
        return
    frameworks = installed_frameworks()
    if not frameworks:
        sys.exit("Horovod needs torch or tensorflow: install one of them first.")
    if options.nccl and "tensorflow" in frameworks:
        sys.exit("NCCL is for torch alone: TensorFlow's gradients are exchanged in main memory.")
    if options.mpi:
        require_system_packages(extras)  # their version is one of the facts
    version = wheel_version(build_facts(frameworks, extras))
    if options.wheel_only:
        print(cached_wheel(version, frameworks, extras))
    elif installed_horovod() == version:
        say(f"Horovod {HOROVOD} for {describe(frameworks, extras)} is installed.")
    else:
        install(cached_wheel(version, frameworks, extras), frameworks, extras)
        say(f"Installed Horovod {HOROVOD} for {describe(frameworks, extras)}.")
    warn_about_host_name()


# What to build


def installed_frameworks() -> dict[str, str]:
    """Return the versions of torch and TensorFlow, named as in Horovod's metadata.json."""
    frameworks = {}
    if folder := torch_folder():
        # The file, unlike the package metadata, always has the build tag: 2.13.0+cpu.
        text = (folder / "version.py").read_text()
        frameworks["pytorch"] = re.findall(r"__version__ = '(.+)'", text)[0]
    for name in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            frameworks.setdefault("tensorflow", importlib.metadata.version(name))
    return frameworks


def torch_folder() -> Path | None:
    """Return the folder of the installed torch."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def describe(frameworks: Mapping[str, str], extras: Collection[str] = ()) -> str:
    """Name the frameworks as a user knows them."""
    names = {"pytorch": "torch", "tensorflow": "tensorflow"}
    text = ", ".join(f"{names[key]} {version}" for key, version in frameworks.items())
    return " and ".join([text, *(extra.upper() for extra in extras)])


def build_facts(frameworks: Mapping[str, str], extras: Collection[str] = ()) -> dict[str, str]:
    """Return all that makes one wheel differ from another."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in RECIPE))
    folder = torch_folder()
    return {
        "horovod": HOROVOD,
        "python": sysconfig.get_config_var("EXT_SUFFIX"),
        "libc": "-".join(platform.libc_ver()),
        "instructions": " ".join(instruction_sets()),
        "recipe": digest.hexdigest(),
        **frameworks,
        **({"mpi": mpi_version()} if "mpi" in extras else {}),
        **(nccl.facts(folder, os.environ) if "nccl" in extras and folder else {}),
    }


def instruction_sets() -> list[str]:
    """Return those of the processor's instruction sets that Horovod compiles for."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return sorted({"avx", "f16c", "fma"} & words)


def mpi_version() -> str:
    """Return what MPI says of its version."""
    result = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[0]


def wheel_version(facts: Mapping[str, str]) -> str:
    """Return Horovod's version with a digest of the facts, by which a wheel is recognised."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{HOROVOD}+detox{digest[:12]}"


def installed_horovod() -> str | None:
    """Return the version of the installed Horovod."""
    try:
        return importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return None


# What the system must have


def require_system_packages(extras: Collection[str] = (), venv: bool = False) -> None:
    """Install what is missing to build Horovod where root has apt, else say what to install."""
    missing = missing_system_packages(extras, venv)
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"Installing {' '.join(missing.values())} with apt-get")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
        command = ["apt-get", "install", "-qq", "--no-install-recommends", *missing.values()]
        subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
        importlib.invalidate_caches()
        missing = missing_system_packages(extras, venv)
    if missing:
        sys.exit(
            f"Building Horovod needs {', '.join(missing)}. "
            f"On Debian or Ubuntu: apt-get install {' '.join(missing.values())}"
        )


def missing_system_packages(extras: Collection[str], venv: bool) -> dict[str, str]:
    """Return what is missing, with the names of Debian's packages."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    present = {
        ("a C++ compiler", "g++"): shutil.which(compiler),
        ("make", "make"): shutil.which("make"),
        (f"the headers of {python}", f"{python}-dev"): headers.exists(),
        (f"the venv module of {python}", f"{python}-venv"): (
            not venv or importlib.util.find_spec("ensurepip")
        ),
        ("MPI's compiler", "libopenmpi-dev"): "mpi" not in extras or shutil.which("mpicxx"),
        ("mpirun", "openmpi-bin"): "mpi" not in extras or shutil.which("mpirun"),
    }
    return {what: package for (what, package), there in present.items() if not there}


def warn_about_host_name() -> None:
    """Warn where this machine cannot look up its own name, without which Gloo crashes."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        say(f"Warning: Gloo jobs will crash here. Add the line '127.0.0.1 {name}' to /etc/hosts.")


# How to build


def cached_wheel(version: str, frameworks: Mapping[str, str], extras: Collection[str]) -> Path:
    """Return the wheel of this version, built first if the cache lacks it."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache / "lock"):
        if wheels := sorted(cache.glob(f"horovod-{version}-*.whl")):
            return wheels[0]
        require_system_packages(extras)
        what = describe(frameworks, extras)
        log = cache / f"build-{version}.log"
        say(f"Building Horovod {HOROVOD} for {what}: a few minutes, once. All output: {log}")
        with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as folder:
            wheel = build_wheel(Path(folder), version, frameworks, extras, log)
            return wheel.rename(cache / wheel.name)


def cache_folder() -> Path:
    """Return the folder that keeps the wheels."""
    if folder := os.environ.get("HOROVOD_DETOX_CACHE"):
        return Path(folder).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "horovod_detox"


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file, so that two builds never run at once."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another build of Horovod")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_wheel(
    folder: Path, version: str, frameworks: Mapping[str, str], extras: Collection[str], log: Path
) -> Path:
    """Build the wheel in a folder, with build tools that the user's environment never sees."""
    tools = folder / "tools"
    environment = build_environment(os.environ, tools, frameworks, extras)
    log.unlink(missing_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--target", str(tools), *BUILD_TOOLS], log, dict(os.environ))
    # pip's cache does not know which torch a wheel was built for.
    options = ["--no-cache-dir", "--no-deps", "--no-build-isolation", "--use-pep517"]
    source = ["--no-binary", "horovod", f"horovod=={HOROVOD}"]
    run([*pip, "download", *options, "-d", str(folder), *source], log, environment)
    (archive,) = folder.glob("horovod-*.tar.gz")
    # Only now the version: pip refuses a download whose own version is not the one asked for.
    environment["HOROVOD_LOCAL_VERSION"] = version.partition("+")[2]
    run([*pip, "wheel", "-v", *options, "-w", str(folder), str(archive)], log, environment)
    (wheel,) = folder.glob("horovod-*.whl")
    with zipfile.ZipFile(wheel) as files:
        require_frameworks(files.read("horovod/metadata.json").decode(), frameworks)
    return wheel


def build_environment(
    environment: Mapping[str, str],
    tools: Path,
    frameworks: Mapping[str, str],
    extras: Collection[str] = (),
) -> dict[str, str]:
    """Return the environment that makes Horovod build for exactly these frameworks and extras."""
    ours = {name: text for name, text in environment.items() if not is_build_switch(name)}
    for framework in ("PYTORCH", "TENSORFLOW"):
        # Without these a framework that fails to load is left out silently.
        with_or_without = "WITH" if framework.lower() in frameworks else "WITHOUT"
        ours[f"HOROVOD_{with_or_without}_{framework}"] = "1"
    mpi = "WITH_MPI" if "mpi" in extras else "WITHOUT_MPI"
    for option in ("WITH_GLOO", mpi, "WITHOUT_MXNET", "WITHOUT_NVTX"):
        ours[f"HOROVOD_{option}"] = "1"
    if "nccl" in extras:
        ours |= nccl.switches(tools / "nccl", environment)
    ours["HOROVOD_DETOX_CXX_STANDARD"] = str(torch_cxx_standard())
    ours["CMAKE_TOOLCHAIN_FILE"] = str(TOOLCHAIN)
    ours["MAKEFLAGS"] = f"-j{parallel_jobs()}"
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tools), environment.get("PYTHONPATH")]))
    ours["PATH"] = os.pathsep.join(filter(None, [str(tools / "bin"), environment.get("PATH")]))
    return ours


def is_build_switch(name: str) -> bool:
    """Tell whether a variable would change what Horovod builds, or is make's own."""
    return name.startswith(("HOROVOD_", "CMAKE_", "CUDA", "CCL_", "MAKE", "MFLAGS"))


def torch_cxx_standard() -> int:
    """Return the C++ standard that the installed torch needs."""
    folder = torch_folder()
    header = folder / "include" / "ATen" / "ATen.h" if folder else None
    return cxx_standard(header.read_text()) if header else 17


def cxx_standard(header: str) -> int:
    """Return the C++ standard named in the text of torch's ATen.h, and at least 17."""
    return max([17, *map(int, re.findall(r"C\+\+(\d\d) or later", header))])


def parallel_jobs() -> int:
    """Return how many compilers fit the processors and the memory, at 2 GiB each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory >> 31))


def require_frameworks(metadata: str, frameworks: Mapping[str, str]) -> None:
    """Exit if a Horovod's metadata.json lists other frameworks than these."""
    built = MODULES.keys() & json.loads(metadata)
    if built != frameworks.keys():
        sys.exit(f"Horovod was built for {sorted(built)}, but wanted for {sorted(frameworks)}.")


def install(wheel: Path, frameworks: Mapping[str, str], extras: Collection[str]) -> None:
    """Install the wheel in place of any other Horovod, and check that it loads."""
    log = wheel.with_name("install.log")
    log.unlink(missing_ok=True)
    run([sys.executable, "-m", "pip", "install", str(wheel)], log, dict(os.environ))
    importlib.invalidate_caches()
    distribution = importlib.metadata.distribution("horovod")
    metadata = Path(str(distribution.locate_file("horovod/metadata.json"))).read_text()
    require_frameworks(metadata, frameworks)
    modules = [MODULES[name] for name in frameworks]
    checks = [f"assert {module}.{extra}_built()" for module in modules for extra in extras]
    code = "; ".join([f"import {', '.join(modules)}", *checks])
    run([sys.executable, "-c", code], log, dict(os.environ))


def run(command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
    """Run a command with its output in a log file, whose end is shown if the command fails."""
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        progress = Progress(log)
        with subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(LOOK_SECONDS)
                    progress.look()
            except BaseException:
                process.kill()
                raise
            finally:
                progress.end()
    if process.returncode:
        tail = log.read_text(errors="replace").splitlines()[-30:]
        sys.exit("\n".join([*tail, f"Failed with exit code {process.returncode}. Log: {log}"]))


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

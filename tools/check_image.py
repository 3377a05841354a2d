"""Build the image for CPUs and check that it is what docs/image.md says.

    python tools/check_image.py [--engine NAME] [--build-arg NAME=VALUE ...]

Docker or podman build and run it where there is one. Elsewhere buildah does, as root, and what it
made is removed at the end.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines import ENGINES, Engine, Volumes, engine_here, say

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "horovod_detox"
TEST_IMAGE = "horovod_detox_test"
# Nobody but the tests needs pytest.
TEST_DOCKERFILE = f"""
FROM {IMAGE}
USER root
ARG PIP_CONFIG_FILE=/run/secrets/pip.conf
RUN --mount=type=secret,id=pip.conf pip install hypothesis pytest pytest-timeout
USER horovod
"""
MANIFEST = ROOT / "examples" / "k8s" / "mpijob.yaml"
HOME = "/home/horovod"
PORT = "2222"
LAUNCHER = "digits-launcher"
WORKERS = ("digits-worker-0", "digits-worker-1", "digits-worker-2")

BUILD_TOOLS = ("gcc", "g++", "cc", "c++", "clang", "make", "cmake", "ld", "nvcc")
LEFTOVERS = (
    "/etc/ssh/ssh_host_*",
    "/horovod",
    "/package",
    "/root/.[a-z]*/*",
    "/run/secrets/*",
    "/src",
    "/tmp/*",
    "/var/cache/apt/*",
    "/var/lib/apt/lists/*",
    f"{HOME}/.cache",
    f"{HOME}/.ssh/*",
)
TESTS = {
    "torch": "tests/distributed/torch/test_trajectory.py",
    "tensorflow": "tests/distributed/tensorflow/test_trajectory.py",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the image, check it and report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--build-arg", action="append", default=[], help="of the Dockerfile")
    parser.add_argument("--engine", choices=ENGINES, help="default: the first that is ready")
    parser.add_argument("--keep", type=Path, help="a folder for buildah's images, to go on from")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        engine = engine_here(options.keep or Path(name), options.engine)
        try:
            check(engine, Path(name), options.build_arg)
        finally:
            engine.close()


def check(engine: Engine, folder: Path, arguments: Sequence[str]) -> None:
    """Build the image and check all that is said of it, on hosts that are made of it."""
    with timed("built"):
        engine.build(IMAGE, ROOT, arguments)
    say("\n".join(engine.layers(IMAGE)))
    test_folder = folder / "test"
    test_folder.mkdir()
    (test_folder / "Dockerfile").write_text(TEST_DOCKERFILE)
    engine.build(TEST_IMAGE, test_folder, [])
    start_hosts(engine, folder)
    hosts = Hosts(engine)
    for judge in (contents, user, health, kernels, ssh, job, distributed_tests):
        with timed(judge.__name__):
            judge(hosts)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long something took that went well."""
    start = time.monotonic()
    yield
    print(f"{what}: well, {time.monotonic() - start:.0f} s", flush=True)


def start_hosts(engine: Engine, folder: Path) -> None:
    """Make a launcher and workers as the MPI operator does, and two hosts without keys."""
    keys, settings = folder / "keys", folder / "mpi"
    for path in (keys, settings):
        path.mkdir()
    # As in a volume of Kubernetes, all is root's and readable.
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(keys / "id_rsa")], check=True)
    (keys / "authorized_keys").write_bytes((keys / "id_rsa.pub").read_bytes())
    for path in keys.iterdir():
        path.chmod(0o644)
    full_names = {worker: f"{worker}.digits-worker.default.svc" for worker in WORKERS}
    lines = [f"{name} slots=2\n" for name in full_names.values()]
    (settings / "hostfile").write_text("".join(lines))
    for worker in WORKERS:
        engine.start(worker, IMAGE, [full_names[worker]], {f"{HOME}/.ssh": keys})
    engine.start(LAUNCHER, IMAGE, [], {f"{HOME}/.ssh": keys, "/etc/mpi": settings})
    engine.start("bare", IMAGE, [], {})
    tests: Volumes = {f"{HOME}/test/{name}": ROOT / name for name in ("tests", "pyproject.toml")}
    engine.start("tests", TEST_IMAGE, [], tests)


class Hosts:
    """The hosts of a job, to run commands on.

    Args:
        engine: that made them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, host: str, *command: str, **variables: str) -> tuple[int, str]:
        """Run a command; return its exit code and all that it printed."""
        outside = self.engine.inside(host, command, variables)
        result = subprocess.run(
            outside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
        )
        return result.returncode, result.stdout.strip()

    def serve(self, host: str) -> None:
        """Start the ssh server and wait until the launcher reaches it."""
        outside = self.engine.inside(host, ["ssh-server"], {})
        subprocess.Popen(outside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        probe = f"import socket; socket.create_connection(('{host}', {PORT}))"
        deadline = time.monotonic() + 120
        while self.run(LAUNCHER, "python", "-c", probe)[0]:
            require(time.monotonic() < deadline, f"{host} has no ssh server")
            time.sleep(0.5)


def require(true: object, complaint: str) -> None:
    """Exit with a complaint unless something is true."""
    if not true:
        sys.exit(f"The image is not as it should be: {complaint}")


# What is said of the image


def contents(hosts: Hosts) -> None:
    """Neither build tools nor keys, caches or settings of the build are in it."""
    tools = f"for tool in {' '.join(BUILD_TOOLS)}; do command -v $tool; done"
    leftovers = f"ls -d {' '.join(LEFTOVERS)}"
    _, found = hosts.run("bare", "sh", "-c", f"({tools}; {leftovers}) 2>/dev/null; true")
    require(not found, f"it contains {found}")


def user(hosts: Hosts) -> None:
    """Its user is not root, and cannot change what is installed."""
    _, name = hosts.run("bare", "id", "-un")
    require(name == "horovod", f"its user is {name}")
    code, _ = hosts.run("bare", "touch", "/opt/venv/test")
    require(code, f"{name} can change /opt/venv")


def health(hosts: Hosts) -> None:
    """The health check passes."""
    kind, *command = hosts.engine.healthcheck(IMAGE)
    code, text = hosts.run("bare", *(["sh", "-c"] if kind == "CMD-SHELL" else []), *command)
    require(code == 0, f"the health check {command} says {text}")


def kernels(hosts: Hosts) -> None:
    """The kernels are compiled, for processors of this kind."""
    program = "from horovod_detox.arrays import compilation as c; c.prepare(); print('prepared')"
    _, text = hosts.run("bare", "python", "-c", program)
    require(text == "prepared", text)


def ssh(hosts: Hosts) -> None:
    """Hosts reach each other by ssh with the job's key, and only so."""
    code, text = hosts.run("bare", "ssh-server")
    require(code and "mount" in text, f"without a key the ssh server says {text}")
    for worker in WORKERS:
        hosts.serve(worker)
        command = "hostname; id -un; command -v python"
        code, text = hosts.run(LAUNCHER, "ssh", "-p", PORT, worker, command)
        expected = [worker, "horovod", "/opt/venv/bin/python"]
        require(text.split() == expected, f"ssh to {worker} says {text}")
    code, text = hosts.run("bare", "ssh", "-p", PORT, WORKERS[0], "true")
    require(code and "Permission denied" in text, f"without a key ssh says {text}")
    scans = [f"ssh-keyscan -p {PORT} {worker} 2> /dev/null" for worker in WORKERS]
    keys = {hosts.run("bare", "sh", "-c", scan)[1].split()[-1] for scan in scans}
    require(len(keys) == len(WORKERS), f"the hosts share a host key: {keys}")


def job(hosts: Hosts) -> None:
    """The launcher of examples/k8s/mpijob.yaml trains on all workers."""
    # This Python may have no YAML; the image's has.
    program = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.argv[1])))"
    _, text = hosts.run("bare", "python", "-c", program, MANIFEST.read_text())
    template = json.loads(text)["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]
    (container,) = template["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    code, text = hosts.run(LAUNCHER, *container["command"], *container["args"], **variables)
    require(code == 0, text)
    say(text)


def distributed_tests(hosts: Hosts) -> None:
    """Tests of the installed frameworks pass on four ranks."""
    _, text = hosts.run("bare", "sh", "-c", "ls /opt/venv/lib/python3*/site-packages")
    for framework in TESTS.keys() & text.split():
        options = ["-p", "no:cacheprovider", "--timeout-method=thread", TESTS[framework]]
        command = ["horovodrun", "--gloo", "-np", "4", "python", "-m", "pytest", *options]
        code, log = hosts.run(
            "tests",
            *("sh", "-c", f"cd {HOME}/test && exec {shlex.join(command)}"),
            OMP_NUM_THREADS="1",
            TF_NUM_INTRAOP_THREADS="1",
            TF_CPP_MIN_LOG_LEVEL="2",
            TF_ENABLE_ONEDNN_OPTS="0",
        )
        require(code == 0, log)
        say(log.splitlines()[-1])


if __name__ == "__main__":
    main()

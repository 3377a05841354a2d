"""What builds images and runs them as the hosts of a job: docker, podman or buildah."""

import ast
import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

ENGINES = ("docker", "podman", "buildah")
NETWORK = "detox-test"
SUITE = "bookworm"
BASE = f"localhost/debian:{SUITE}-slim"
Volumes = Mapping[str, Path]
"""What to mount, read-only: folders or files of this machine by their paths in the container."""


class Engine(Protocol):
    """What builds images and runs them."""

    def build(self, image: str, folder: Path, arguments: Sequence[str]) -> None:
        """Build an image from the Dockerfile in a folder."""
        ...

    def healthcheck(self, image: str) -> list[str]:
        """Return the command of an image's health check."""
        ...

    def layers(self, image: str) -> list[str]:
        """Describe the sizes of an image's layers."""
        ...

    def start(self, host: str, image: str, names: Sequence[str], volumes: Volumes) -> None:
        """Make a host of an image, whom those that come later know by its names."""
        ...

    def inside(self, host: str, command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """Return the command that runs a command on a host, as the image's user."""
        ...

    def close(self) -> None:
        """End and remove all hosts."""
        ...


def engine_here(folder: Path, wanted: str | None = None) -> Engine:
    """Return the engine that this machine has, or exit with what to install.

    Args:
        folder: to keep things in while the engine is used.
        wanted: one of `ENGINES`; None: the first of them.
    """
    for name in [wanted] if wanted else ENGINES:
        if name != "buildah" and shutil.which(name) and succeeds([name, "info"]):
            return Docker(name, PipSettings(folder))
        missing = [tool for tool in ("buildah", "debootstrap", "ip") if not shutil.which(tool)]
        if name == "buildah" and os.geteuid() == 0 and not missing:
            return Buildah(folder, PipSettings(folder))
    sys.exit(
        "This needs docker or podman, with its service running; or else root, with buildah and "
        "debootstrap. On Debian: apt-get install buildah debootstrap iproute2"
    )


class PipSettings:
    """This machine's settings of pip, as a container can use them.

    Local paths, such as an index on disk or a certificate, are mounted below /run/pip, each with
    the folder that it is in: an index refers to files beside it.

    Args:
        folder: where to write the settings.
    """

    def __init__(self, folder: Path) -> None:
        listed = output([sys.executable, "-m", "pip", "config", "list"])
        settings: dict[str, str] = {}
        # Variables of the environment come first, and win.
        for line in reversed(listed.splitlines()):
            section, _, setting = line.partition(".")
            name, _, value = setting.partition("=")
            if section in ("global", ":env:"):
                settings[name] = ast.literal_eval(value)
        words = " ".join(settings.values()).replace("file://", "").split()
        parents = {Path(word).parent for word in words if word.startswith("/")}
        tops = {path for path in parents if not parents & set(path.parents)}
        self.volumes = {f"/run/pip{path}": path for path in tops}
        self.file = folder / "pip.conf"
        lines = [f"{name} = {_moved(value)}" for name, value in settings.items()]
        self.file.write_text("\n".join(["[global]", *lines, ""]))


def _moved(value: str) -> str:
    """Put the local paths of a setting below /run/pip."""
    words = value.replace("file:///", "file:///run/pip/").split()
    return " ".join(f"/run/pip{word}" if word.startswith("/") else word for word in words)


class Docker:
    """Docker, or podman by the same commands; every host is a container.

    Args:
        program: `docker` or `podman`.
        pip: to build with.
    """

    def __init__(self, program: str, pip: PipSettings) -> None:
        self._program = program
        self._pip = pip
        self._hosts: list[str] = []

    def build(self, image: str, folder: Path, arguments: Sequence[str]) -> None:
        options = [f"--secret=id=pip.conf,src={self._pip.file}", *_build_arguments(arguments)]
        if self._program == "podman":
            options += ["--format=docker", *_mounts(self._pip.volumes)]
        elif self._pip.volumes:
            say(f"docker build cannot mount {', '.join(map(str, self._pip.volumes.values()))}")
        self._run("build", *options, f"--tag={image}", str(folder))

    def healthcheck(self, image: str) -> list[str]:
        form = "{{json .Config.Healthcheck.Test}}"
        return json.loads(output([self._program, "inspect", f"--format={form}", image]))

    def layers(self, image: str) -> list[str]:
        form = "{{.Size}}\t{{.CreatedBy}}"
        history = output([self._program, "history", "--no-trunc", f"--format={form}", image])
        return [line[:100] for line in history.splitlines() if not line.startswith("0B")]

    def start(self, host: str, image: str, names: Sequence[str], volumes: Volumes) -> None:
        if not self._hosts:
            self._run("network", "create", NETWORK)
        self._hosts.append(host)
        options = ["--detach", f"--name={host}", f"--hostname={host}", f"--network={NETWORK}"]
        options += [f"--network-alias={name}" for name in names]
        self._run("run", *options, *_mounts(volumes), image, "sleep", "infinity")

    def inside(self, host: str, command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        return [self._program, "exec", *_settings(variables), host, *command]

    def close(self) -> None:
        for host in self._hosts:
            self._run("rm", "--force", host)
        if self._hosts:
            self._run("network", "rm", NETWORK)

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._program, *arguments], check=True, stdout=sys.stderr)


class Buildah:
    """Buildah, which needs no service and no registry; every host is a network namespace.

    Images on Debian are built on a base made here by debootstrap.

    Args:
        folder: for all that is stored.
        pip: to build with.
    """

    def __init__(self, folder: Path, pip: PipSettings) -> None:
        self._folder = folder
        self._pip = pip
        stores = [f"--root={folder / 'images'}", f"--runroot={folder / 'running'}"]
        self._program = ["buildah", *stores, "--storage-driver=overlay"]
        self._hosts: dict[str, Volumes] = {}
        self._names = folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        if not succeeds([*self._program, "inspect", "--type=image", BASE]):
            self._make_base()

    def _make_base(self) -> None:
        say(f"Making {BASE} with debootstrap")
        tree = self._folder / "base"
        command = ["debootstrap", "--variant=minbase", SUITE, str(tree)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for rest in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(tree / rest)
        # As in Debian's own images: what is installed does not start.
        policy = tree / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        container = output([*self._program, "from", "scratch"]).strip()
        self._run("add", "--quiet", container, str(tree), "/")
        self._run("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(tree)

    def build(self, image: str, folder: Path, arguments: Sequence[str]) -> None:
        options = ["--format=docker", "--pull-never", "--isolation=chroot", "--network=host"]
        options += [f"--secret=id=pip.conf,src={self._pip.file}", *_mounts(self._pip.volumes)]
        self._run(
            "build", "--layers", *options, *_build_arguments(arguments), "-t", image, str(folder)
        )

    def healthcheck(self, image: str) -> list[str]:
        return self._inspect(image)["Docker"]["config"]["Healthcheck"]["Test"]

    def layers(self, image: str) -> list[str]:
        found = self._inspect(image)["OCIv1"]
        stored = json.loads((self._folder / "images/overlay-layers/layers.json").read_text())
        sizes = {layer.get("diff-digest"): layer.get("diff-size", 0) / 1e6 for layer in stored}
        made = [step["created_by"] for step in found["history"] if not step.get("empty_layer")]
        digests = found["rootfs"]["diff_ids"]
        lines = [
            f"{sizes[digest]:8.1f} MB  {' '.join(command.split())[:80]}"
            for digest, command in zip(digests, made, strict=True)
        ]
        return [*lines, f"{sum(sizes[digest] for digest in digests):8.1f} MB  together"]

    def start(self, host: str, image: str, names: Sequence[str], volumes: Volumes) -> None:
        if not self._hosts:
            ip("netns", "add", NETWORK)
            ip("-n", NETWORK, "link", "add", "switch", "type", "bridge")
            ip("-n", NETWORK, "link", "set", "switch", "up")
        address = ipaddress.ip_address("10.99.0.1") + len(self._hosts)
        with self._names.open("a") as file:
            file.write(f"{address} {' '.join([host, *names])}\n")
        self._run("from", "--pull-never", f"--name={host}", image)
        ip("netns", "add", host)
        self._hosts[host] = {"/etc/hosts": self._names, **volumes}
        port = f"port{len(self._hosts)}"
        ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", port, "netns", NETWORK)
        ip("-n", NETWORK, "link", "set", port, "master", "switch", "up")
        ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", host, "link", "set", device, "up")

    def inside(self, host: str, command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        options = ["--isolation=chroot", "--network=host", "--no-hosts", f"--hostname={host}"]
        options += [*_settings(variables), *_mounts(self._hosts[host])]
        in_container = [*self._program, "run", *options, host, "--", *command]
        return ["ip", "netns", "exec", host, *in_container]

    def close(self) -> None:
        for host in self._hosts:
            for process in output(["ip", "netns", "pids", host]).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            ip("netns", "delete", host)
        if self._hosts:
            ip("netns", "delete", NETWORK)
        self._run("rm", "--all")

    def _inspect(self, image: str) -> dict:
        return json.loads(output([*self._program, "inspect", "--type=image", image]))

    def _run(self, *arguments: str) -> None:
        subprocess.run([*self._program, *arguments], check=True, stdout=sys.stderr)


def _mounts(volumes: Volumes) -> list[str]:
    return [f"--volume={path}:{inside}:ro" for inside, path in volumes.items()]


def _build_arguments(arguments: Sequence[str]) -> list[str]:
    return [f"--build-arg={argument}" for argument in arguments]


def _settings(variables: Mapping[str, str]) -> list[str]:
    return [f"--env={name}={value}" for name, value in variables.items()]


def ip(*arguments: str) -> None:
    """Run `ip`, which sets up networks."""
    subprocess.run(["ip", *arguments], check=True)


def output(command: Sequence[str]) -> str:
    """Run a command that has to succeed and return what it prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def succeeds(command: Sequence[str]) -> bool:
    """Run a command and tell whether it succeeds."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)

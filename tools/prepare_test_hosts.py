"""Look for what `make test-hosts` needs, and install what is missing where root has apt-get.

The tests make hosts of namespaces, each with an SSH server of its own; nothing else is served.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "unshare": "util-linux",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
}
# What a host is made of, and the switch between hosts.
TRIAL = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec"]
TRIAL += ["ip link add name switch type bridge; ip link add name here type veth peer name there"]


def main() -> None:
    """Exit with one line that says what is missing, if anything is."""
    if os.geteuid():
        sys.exit("make test-hosts makes hosts of network namespaces: it needs root.")
    if missing() and may_install():
        install(missing())
    if packages := missing():
        sys.exit(f"make test-hosts needs more: apt-get install {' '.join(packages)}")
    trial = subprocess.run(TRIAL, capture_output=True, text=True, check=False)
    if trial.returncode:
        sys.exit(f"make test-hosts cannot make namespaces here: {trial.stderr.strip()}")


def missing() -> list[str]:
    """Return the Debian packages of the commands that are not there."""
    return [package for command, package in PACKAGES.items() if not shutil.which(command)]


def may_install() -> bool:
    """Tell whether apt-get is there, and installing an SSH server would not also start it."""
    return bool(shutil.which("apt-get")) and not Path("/run/systemd/system").exists()


def install(packages: list[str]) -> None:
    """Install packages, without a word but the first unless something fails."""
    print(f"Installing {' '.join(packages)} with apt-get", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
    command = ["apt-get", "install", "-qq", "--no-install-recommends", *packages]
    subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

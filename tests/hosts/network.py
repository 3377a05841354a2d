"""Hosts on one machine: each has a network, a name, processes and an SSH server of its own.

The machine's own network, names and files are not touched: the hosts, and the switch between them,
are namespaces. They end, with every process in them, when the process that made them ends.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NETWORK = "10.213.77"
SSH_PORT = 2222

# Where a namespace becomes a host: its name, whom it knows, and an SSH server.
HOST = """
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/shadow /etc/shadow
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
/usr/sbin/sshd -f {folder}/sshd_config
"""

FILES = {
    "shadow": "root:*:19000:0:99999:7:::\n",
    "sshd_config": """
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
UseDNS no
PidFile none
ClientAliveInterval 3
ClientAliveCountMax 2
""",
    "ssh_config": """
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile /dev/null
""",
    # The user's own settings of SSH, and their known hosts, are left alone.
    "bin/ssh": """#!/bin/sh
exec /usr/bin/ssh -F {folder}/ssh_config "$@"
""",
}


class Namespace:
    """A network, a name, mounts and processes apart from the machine's, until it is closed.

    Attributes:
        pid: its first process, with which all others end.
    """

    KINDS = ("--net", "--uts", "--mount", "--pid")

    def __init__(self, script: str) -> None:
        unshare = ["unshare", *self.KINDS, "--fork", "--kill-child", "--mount-proc"]
        self._unshare = subprocess.Popen(
            # `cat` ends with this process, if not before.
            [*unshare, "sh", "-e", "-c", f"{script}\necho ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._unshare.stdout
        if self._unshare.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError("this machine does not let a namespace be made: see above")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.pid = int(children.read_text())
        self._id = _pid_namespace(self.pid)

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs another one in here, in the present folder."""
        enter = ["nsenter", "--target", str(self.pid), *self.KINDS]
        return [*enter, "env", "-C", os.getcwd(), *arguments]

    def ip(self, *arguments: str) -> None:
        """Run `ip` on this network."""
        subprocess.run(
            ["nsenter", "--target", str(self.pid), "--net", "ip", *arguments], check=True
        )

    def processes(self) -> dict[int, str]:
        """Return the command lines of the processes, but the first and a server that waits."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            if pid != self.pid and _pid_namespace(pid) == self._id:
                with suppress(OSError):  # it has ended by now
                    found[pid] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        return {pid: line for pid, line in found.items() if line and "[listener]" not in line}

    def kill(self) -> None:
        """End all processes at once."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End all processes, and what else there is in here."""
        self._unshare.communicate()


class Network:
    """Hosts that are connected by a switch.

    Attributes:
        folder: what they have of their own; its `bin` holds an `ssh` for them.
        hosts: by name.
    """

    def __init__(self, folder: Path, switch: Namespace, hosts: dict[str, Namespace]) -> None:
        self.folder = folder
        self.hosts = hosts
        self._switch = switch
        switch.ip("link", "add", "name", "switch", "type", "bridge")
        switch.ip("link", "set", "switch", "up")
        for number, (name, host) in enumerate(hosts.items(), start=1):
            cable = ("name", f"to-{name}", "type", "veth", "peer", "name", "eth0")
            switch.ip("link", "add", *cable, "netns", str(host.pid))
            switch.ip("link", "set", f"to-{name}", "master", "switch", "up")
            host.ip("address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            host.ip("link", "set", "eth0", "up")

    def unplug(self, name: str) -> None:
        """Pull out the cable of a host."""
        self._switch.ip("link", "set", f"to-{name}", "down")


@contextmanager
def connected(folder: Path, names: Sequence[str]) -> Iterator[Network]:
    """Make hosts of these names, with their files in a folder, as long as the context lasts."""
    _write_files(folder, names)
    with ExitStack() as stack:
        spaces = []
        for script in ("", *(HOST.format(name=name, folder=folder) for name in names)):
            spaces.append(Namespace(script))
            stack.callback(spaces[-1].close)
        yield Network(folder, spaces[0], dict(zip(names, spaces[1:], strict=True)))


def _write_files(folder: Path, names: Sequence[str]) -> None:
    (folder / "bin").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text.format(folder=folder, port=SSH_PORT))
    (folder / "bin" / "ssh").chmod(0o700)
    addresses = [f"{NETWORK}.{number} {name}" for number, name in enumerate(names, start=1)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *addresses, ""]))
    for key in ("key", "host_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True)


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # it has ended
        return ""

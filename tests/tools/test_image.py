"""The image's files, and the jobs for clusters that use it, agree with the code and each other.

Whether the image builds and runs is seen by tools/check_image.py.
"""

import argparse
import importlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from horovod_detox import Detox
from tools.image.requirements import NAMES, requirements

yaml: Any = pytest.importorskip("yaml")  # Horovod needs it

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANIFEST = ROOT / "examples" / "k8s" / "mpijob.yaml"
SBATCH = ROOT / "examples" / "slurm" / "train.sbatch"
SSHD = (ROOT / "tools" / "image" / "sshd_config").read_text()
SCRIPTS = [ROOT / "tools" / "image" / "ssh-server", SBATCH]


def default(name: str) -> str:
    """Return the default of an argument of the Dockerfile, the same wherever it is declared."""
    (value,) = set(re.findall(rf"^ARG {name}=(.*)$", DOCKERFILE, re.MULTILINE))
    return value.strip('"')


@pytest.fixture(scope="module")
def job() -> dict:
    return yaml.safe_load(MANIFEST.read_text())


def pod(job: dict, role: str) -> dict:
    return job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]


def horovodrun(command: list[str]) -> argparse.Namespace:
    """Parse a command as horovodrun does."""
    launch = pytest.importorskip("horovod.runner.launch")
    assert command[0] == "horovodrun"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        return launch.parse_args()


def assert_spread(command: list[str], hosts: list) -> None:
    """Check that the example takes its flags, and has a member of every group on each host."""
    python, script, *given = command
    assert python == "python"
    assert (ROOT / script).exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        args = importlib.import_module("comparison").flags("an example").parse_args(given)
    sys.modules.pop("comparison")
    groups = Detox(group_size=args.group_size).plan(len(hosts), hosts).groups
    for members in groups.members:
        assert len({hosts[rank] for rank in members}) == len(set(hosts)), members


# The image


@pytest.mark.parametrize("name", ["FRAMEWORKS", "TORCH", "TENSORFLOW"])
def test_the_image_has_the_versions_of_the_makefile(name):
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(rf"^{name} \?= (.*)$", makefile, re.MULTILINE) == [default(name)]


def test_an_image_needs_the_chosen_frameworks_and_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = {"TORCH": "1.2", "TENSORFLOW": "3.4"}
    assert requirements(["torch"], versions, project)[0] == "torch==1.2"
    both = requirements(list(NAMES), versions, project)
    assert both[:2] == ["torch==1.2", "tensorflow-cpu==3.4"]
    assert {*project["dependencies"], *project["optional-dependencies"]["lab"]} == set(both[2:])
    with pytest.raises(SystemExit, match="not mxnet"):
        requirements(["mxnet"], versions, project)


def test_what_the_image_copies_exists_and_nothing_else_is_sent_to_the_build():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"  # .git and .venv too
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [PurePosixPath(word) for line in copied for word in line.split()]
    assert {source.parts[0] for source in sources} == sent
    assert all((ROOT / source).exists() for source in sources)


def test_what_the_image_runs_is_executable():
    assert SCRIPTS[0].stat().st_mode & stat.S_IXOTH


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(script):
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


# The MPIJob


def test_the_job_uses_what_the_image_has(job):
    (port,) = re.findall(r"^Port (\d+)$", SSHD, re.MULTILINE)
    assert f"EXPOSE {port}" in DOCKERFILE
    launcher, worker = pod(job, "Launcher"), pod(job, "Worker")
    (container,) = launcher["containers"]
    (server,) = worker["containers"]
    assert container["image"] == server["image"] == "horovod_detox:latest"
    assert server["command"] == [SCRIPTS[0].name]
    assert server["readinessProbe"]["tcpSocket"]["port"] == int(port)
    assert horovodrun(container["command"] + container["args"]).ssh_port == int(port)
    (home,) = re.findall(r"^WORKDIR (/home/.*)$", DOCKERFILE, re.MULTILINE)
    assert job["spec"]["sshAuthMountPath"] == f"{home}/.ssh"
    for spec in (launcher, worker):
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(default("USER_ID")),
        }


def test_the_job_fills_all_slots_and_spreads_its_groups(job):
    spec = job["spec"]
    (container,) = pod(job, "Launcher")["containers"]
    args = horovodrun(container["command"] + container["args"])
    replicas, slots = spec["mpiReplicaSpecs"]["Worker"]["replicas"], spec["slotsPerWorker"]
    assert args.use_gloo
    assert args.hostfile == "/etc/mpi/hostfile"
    assert args.num_proc == replicas * slots
    hosts = [rank // slots for rank in range(args.num_proc)]
    assert_spread(args.command, hosts)


def test_the_job_sets_only_variables_that_there_are(job):
    known = {f"HOROVOD_DETOX_{field.name.upper()}" for field in fields(Detox)}
    (container,) = pod(job, "Launcher")["containers"]
    names = {entry["name"] for entry in container["env"]}
    assert {name for name in names if name.startswith("HOROVOD_DETOX_")} <= known


def test_no_two_workers_share_a_node(job):
    affinity = pod(job, "Worker")["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    labels = term["labelSelector"]["matchLabels"]
    assert labels["training.kubeflow.org/job-name"] == job["metadata"]["name"]


# The script for Slurm


def test_the_slurm_script_starts_a_rank_for_every_task(tmp_path):
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", SBATCH.read_text(), re.MULTILINE))
    hosts = [f"node{number}" for number in range(int(options["nodes"]))]
    per_host = int(options["ntasks-per-node"])
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name, text in {
        "scontrol": f'test "$*" = "show hostnames node[0-2]" && printf "%s\\n" {" ".join(hosts)}',
        "horovodrun": 'printf "%s\\n" "$OMP_NUM_THREADS" horovodrun "$@"',
    }.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    variables = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[0-2]",
        "SLURM_NTASKS": str(len(hosts) * per_host),
        "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
    }
    # As Slurm does: a copy, from another folder.
    copy = shutil.copy(SBATCH, tmp_path / "slurm_script")
    text = subprocess.run(
        ["bash", copy],
        env={"PATH": os.environ["PATH"], **variables},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        cwd="/",
    ).stdout
    threads, *command = text.splitlines()
    args = horovodrun(command)
    assert threads == options["cpus-per-task"]
    assert args.hosts == ",".join(f"{host}:{per_host}" for host in hosts)
    assert args.num_proc == len(hosts) * per_host
    assert_spread(args.command, [host for host in hosts for _ in range(per_host)])

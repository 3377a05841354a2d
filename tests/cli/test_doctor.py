"""What the doctor finds on a machine, and what it says of a job."""

import socket
import sys
from types import ModuleType, SimpleNamespace

import pytest

from horovod_detox import Detox
from horovod_detox.cli import doctor, installation
from horovod_detox.cli.installation import examine, frameworks_of
from horovod_detox.cli.main import main
from horovod_detox.determinism.verdict import judge_trials
from horovod_detox.exchange.cluster import InProcessCluster
from tests.determinism.test_verdict import ODD, TWO_THREADS, trials

BUILT = {"pytorch": "2.13.0", "tensorflow": "2.21.0", "dummy": "none"}


def module(**attributes):
    made = ModuleType("disguised")
    vars(made).update(attributes)
    return made


@pytest.fixture
def machine(monkeypatch):
    """Put modules of a sound installation in the place of those that are there."""
    controllers = {"gloo_built": lambda: True, "mpi_built": lambda: False, "nccl_built": lambda: 0}
    keras = module(__version__="3.15.1", backend=SimpleNamespace(backend=lambda: "tensorflow"))
    modules = {
        "torch": module(__version__="2.13.0"),
        "tensorflow": module(__version__="2.21.0"),
        "keras": keras,
        "horovod": module(__version__="0.28.1"),
        "horovod.torch": module(**controllers),
        "horovod.tensorflow": module(**controllers),
    }
    monkeypatch.setattr(installation, "import_module", modules.__getitem__)
    monkeypatch.setattr(installation.compilation, "prepare", lambda: None)
    monkeypatch.setattr(installation.shutil, "which", lambda *_, **__: "/bin/horovodrun")
    monkeypatch.setattr(installation.socket, "getaddrinfo", lambda *_: [])
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    return modules


def problems():
    """Return the findings with a remedy, as text."""
    return [str(f) for f in examine(["torch", "tensorflow"], BUILT) if f.remedy]


def test_a_sound_installation_has_no_problem(machine):
    found = [str(finding) for finding in examine(["torch", "tensorflow"], BUILT)]
    assert found[:2] == [
        "ok       torch 2.13.0, for which Horovod 0.28.1 was built",
        "ok       horovod.torch was built with Gloo",
    ]
    assert problems() == []


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m, patch: setattr(m["torch"], "__version__", "2.14.0"),
            "torch is 2.14.0, and Horovod was built for 2.13.0\n         build Horovod again",
        ),
        (
            lambda m, patch: m.pop("horovod.torch"),
            "horovod.torch does not load: KeyError: 'horovod.torch'\n         build Horovod again",
        ),
        (
            lambda m, patch: setattr(m["horovod.tensorflow"], "gloo_built", lambda: False),
            "horovod.tensorflow was built with neither Gloo nor MPI\n         build it",
        ),
        (
            lambda m, patch: setattr(m["keras"], "__version__", "2.15.0"),
            "Keras 2.15.0\n         horovod_detox works with Keras 3: pip install",
        ),
        (
            lambda m, patch: patch.setenv("TF_USE_LEGACY_KERAS", "1"),
            "Keras 3.15.1, but tf.keras is Keras 2\n         unset TF_USE_LEGACY_KERAS",
        ),
        (
            lambda m, patch: setattr(m["keras"].backend, "backend", lambda: "jax"),
            "Keras 3.15.1 runs on jax\n         set KERAS_BACKEND=tensorflow",
        ),
        (
            lambda m, patch: patch.setattr(socket, "getaddrinfo", raising(OSError())),
            "cannot look up its own name, {host}: Gloo jobs crash here\n         add the line",
        ),
        (
            lambda m, patch: patch.setattr(installation.shutil, "which", lambda *_, **__: None),
            "horovodrun is not installed\n         install Horovod",
        ),
        (
            lambda m, patch: patch.setattr(
                installation.compilation, "prepare", raising(RuntimeError("no compiler"))
            ),
            "the aggregation rules do not compile: RuntimeError: no compiler\n         install",
        ),
        (
            lambda m, patch: patch.setenv("HOROVOD_DETOX_GRUOP_SIZE", "3"),
            "HOROVOD_DETOX_GRUOP_SIZE is not a variable",
        ),
    ],
)
def test_a_problem_is_named_with_its_remedy(machine, monkeypatch, change, message):
    change(machine, monkeypatch)
    (problem,) = problems()
    assert message.format(host=socket.gethostname()) in problem


def test_frameworks_that_horovod_was_built_for():
    assert frameworks_of(BUILT) == ["torch", "tensorflow"]
    assert frameworks_of(BUILT, "tensorflow") == ["tensorflow"]
    with pytest.raises(ValueError, match="for tensorflow only: install torch and run python"):
        frameworks_of({"tensorflow": "2.21.0"}, "torch")
    with pytest.raises(ValueError, match="without any framework: install torch or tensorflow"):
        frameworks_of({"dummy": "none"})


@pytest.fixture
def alone(monkeypatch):
    """Run the command without a launcher."""
    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_exit_codes_of_an_installation(machine, alone, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "horovod_metadata", lambda: BUILT)
    assert main(["doctor", "--framework", "torch"]) == 0
    assert "horovodrun -np 6 horovod-detox doctor" in capsys.readouterr().out
    machine["torch"].__version__ = "2.0"
    assert main(["doctor"]) == 1
    assert "No job can run here until this is solved" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "horovod_metadata", lambda: {"tensorflow": "2.21.0"})
    assert main(["doctor", "--framework", "torch"]) == 2
    assert "Horovod was built for tensorflow only" in capsys.readouterr().err
    monkeypatch.undo()


def test_a_missing_horovod_is_told_in_one_line(alone, monkeypatch, capsys):
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda _: None)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == (
        "horovod-detox doctor: it needs horovod: python tools/build_horovod.py, in a checkout of "
        "horovod_detox\n"
    )


def run_job(monkeypatch, report, rank=0):
    """Run the command on one rank of a job whose report is known; return its exit code."""
    everybody = InProcessCluster(1).run(lambda collectives: collectives)[0]
    session = SimpleNamespace(plan=lambda: Detox(group_size=3).plan(6))
    context = SimpleNamespace(session=lambda: session, collectives=lambda scope: everybody)
    frontend = module(init=lambda: None, shutdown=lambda: None, rank=lambda: rank)
    modules = {
        "horovod_detox.torch": frontend,
        "horovod_detox.torch.context": module(context=context),
        "horovod_detox.torch.trial": module(checkup=report),
    }
    monkeypatch.setattr(doctor, "import_module", modules.__getitem__)
    monkeypatch.setattr(doctor, "horovod_metadata", lambda: BUILT)
    monkeypatch.setattr(doctor, "GRACE_SECONDS", 0.0)
    monkeypatch.setenv("HOROVOD_RANK", str(rank))
    monkeypatch.setenv("HOROVOD_LOCAL_RANK", str(rank))
    return main(["doctor"])


def test_a_job_is_described_by_rank_0_alone(monkeypatch, capsys):
    odd = dict.fromkeys([1, 4], ODD | TWO_THREADS)
    report = judge_trials(trials(6, odd | {5: {("conditions", "host"): "b"}}))
    assert run_job(monkeypatch, lambda: report) == 1
    printed = capsys.readouterr().out
    for line in (
        "torch on 6 ranks, 2 groups of 3",
        "    host a: ranks 0, 1, 2, 3, 4 of groups 0, 1, 0, 1, 0",
        "    host b: rank 5 of group 1",
        "    torch 2.13",
        "    torch threads  4      0, 2, 3, 5",
        "nondeterministic at tensor conv1.weight: ranks 1, 4 differ: torch threads 2 against 4",
        "What to do:",
    ):
        assert line in printed.splitlines()
    assert run_job(monkeypatch, lambda: report, rank=3) == 1
    assert capsys.readouterr().out == ""
    assert run_job(monkeypatch, lambda: judge_trials(trials(6, {}))) == 0
    assert "What to do" not in capsys.readouterr().out
    assert run_job(monkeypatch, lambda: judge_trials(trials(6, {1: ODD | TWO_THREADS}))) == 0
    printed = capsys.readouterr().out
    assert "rank 1 faulty at tensor conv1.weight" in printed
    assert "What to do:" in printed


def test_errors_of_a_job_are_told_by_rank_0_alone(monkeypatch, capsys):
    assert run_job(monkeypatch, raising(ValueError("too few ranks"))) == 1
    assert capsys.readouterr().err == "horovod-detox doctor: too few ranks\n"
    assert run_job(monkeypatch, raising(ValueError("too few ranks")), rank=3) == 1
    monkeypatch.setattr(doctor, "horovod_metadata", lambda: {"dummy": "none"})
    assert main(["doctor"]) == 2
    assert sys.exc_info() == (None, None, None)
    assert capsys.readouterr() == ("", "")

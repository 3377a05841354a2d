"""What a launcher tells a process."""

import pytest

from horovod_detox import process

RANKS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


@pytest.fixture
def alone(monkeypatch):
    """Let no launcher have told anything."""
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", RANKS)
def test_every_launcher_tells_the_rank(alone, monkeypatch, name):
    assert (process.rank(), process.is_launched()) == (0, False)
    monkeypatch.setenv(name, "3")
    assert process.rank() == 3


def test_a_batch_script_of_slurm_is_no_rank(alone, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert not process.is_launched()
    monkeypatch.setenv("PMI_RANK", "3")
    assert process.is_launched()


def test_horovods_name_of_a_host_goes_first(monkeypatch):
    monkeypatch.setattr(process.socket, "gethostname", lambda: "machine")
    monkeypatch.delenv("HOROVOD_HOSTNAME", raising=False)
    assert process.host() == "machine"
    monkeypatch.setenv("HOROVOD_HOSTNAME", "node7")
    assert process.host() == "node7"

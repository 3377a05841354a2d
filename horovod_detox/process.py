"""This process as its launcher describes it, also before Horovod is initialised.

It lies below all rooms: kernels ask it how many ranks share the cores. Slurm tells the number of a
rank on its host, but not how many there are of them.
"""

import os
import socket

PATIENCE = 10.0
"""Seconds until a rank other than 0 speaks: by then its launcher has ended it, if rank 0 spoke."""
_RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SLURM_RANK = "SLURM_PROCID"
_LOCAL_RANK = (
    "HOROVOD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
)
_LOCAL_SIZE = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def is_launched() -> bool:
    """Return whether a launcher started this process as one of a job.

    Slurm's variables do not tell: a batch script has them, too.
    """
    return any(name in os.environ for name in _RANK)


def rank() -> int:
    """Return the rank of this process; 0 when no launcher says it."""
    return _told((*_RANK, _SLURM_RANK), 0)


def local_rank() -> int:
    """Return the rank among the processes of this host; 0 when no launcher says it."""
    return _told(_LOCAL_RANK, 0)


def local_size() -> int:
    """Return the number of ranks on this host; 1 when no launcher says it."""
    return _told(_LOCAL_SIZE, 1)


def host() -> str:
    """Return the name of this host, as the launcher calls it."""
    return os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname()


def _told(variables: tuple[str, ...], otherwise: int) -> int:
    return next((int(os.environ[name]) for name in variables if name in os.environ), otherwise)

"""What the benchmarks of a job share: its clock, and who prints."""

import argparse
from typing import Any

import numpy as np
import torch

import horovod_detox.torch as hvd
from measuring.clock import Clock
from measuring.tables import report


def clock(repeats: int, limit: float = float("inf")) -> Clock:
    """Return the clock of a job: all ranks begin together, the slowest counts."""
    return Clock(hvd.barrier, slowest, repeats, limit)


def slowest(values: np.ndarray) -> np.ndarray:
    """Return the largest value of any rank, element by element."""
    return hvd.allreduce(torch.as_tensor(values), name="slowest", op=hvd.Max).numpy()


def average(value: float) -> float:
    """Return the mean over the ranks."""
    return hvd.allreduce(torch.tensor(value, dtype=torch.float64), name="average").item()


def say(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Let rank 0 report the rows."""
    if hvd.rank() == 0:
        report(rows, args.json)

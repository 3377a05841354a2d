"""What may change the bits of a gradient: the conditions in a process, and tables of all ranks'."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from horovod_detox import process

Conditions = Mapping[str, str]
NOT_SET = "not set"

NO_BITS = frozenset({"host"})
"""Conditions that change no bits by themselves."""

VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
)
"""Environment variables by which libraries choose their kernels or split their work."""


OF_KERNELS = (
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "NPY_DISABLE_CPU_FEATURES",
    "OPENBLAS_CORETYPE",
)
"""Environment variables by which kernels are chosen that aggregate."""


def common_conditions() -> dict[str, str]:
    """Return what every framework depends on; variables only if they are set."""
    return {
        "host": process.host(),
        "CPU": _cpu(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "denormal numbers": denormals(),
    } | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def rounding() -> str:
    """Return what the last bits of an aggregation depend on, in this process."""
    facts = [_cpu(), f"numpy {np.__version__}", f"numba {version('numba')}"]
    facts.append(f"denormal numbers {denormals()}")
    return ", ".join(facts + [f"{n}={os.environ[n]}" for n in OF_KERNELS if n in os.environ])


def denormals() -> str:
    """Return whether this thread, and those it begins, keep numbers below the normal ones.

    It is tried out: libraries may have them flushed to zero, as torch.set_flush_denormal does.
    """
    smallest = np.full(1, np.finfo(np.float32).tiny, np.float32)
    with np.errstate(all="ignore"):
        return "kept" if (smallest / 2)[0] else "flushed to zero"


@cache
def _cpu() -> str:
    """Return the model of the processor."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def differing(conditions: Sequence[Conditions], ranks: Iterable[int] | None = None) -> list[str]:
    """Return the conditions that change bits and differ between some ranks, by default all.

    >>> differing([{"host": "a", "threads": "2"}, {"host": "b"}])
    ['threads']
    """
    some = [conditions[rank] for rank in ranks] if ranks is not None else conditions
    names = dict.fromkeys(name for each in some for name in each)
    return [
        name for name in names if name not in NO_BITS and len({each.get(name) for each in some}) > 1
    ]


def ranks_by_value(
    conditions: Sequence[Conditions], name: str, ranks: Sequence[int] | None = None
) -> dict[str, list[int]]:
    """Return which ranks have each value of a condition.

    Args:
        conditions: of all ranks.
        name: of the condition.
        ranks: what the ranks are called; None: as they are counted.
    """
    found: dict[str, list[int]] = {}
    for rank, each in zip(ranks or range(len(conditions)), conditions, strict=True):
        found.setdefault(each.get(name, NOT_SET), []).append(rank)
    return found


def table(
    conditions: Sequence[Conditions], names: Iterable[str], ranks: Sequence[int] | None = None
) -> str:
    """Return some conditions as lines of text, one for each value.

    >>> print(table([{"threads": "2"}, {"threads": "4"}, {"threads": "2"}], ["threads"]))
    setting  value  ranks
    threads  2      0, 2
             4      1
    """
    rows = [("setting", "value", "ranks")]
    for name in names:
        title = name
        for value, having in ranks_by_value(conditions, name, ranks).items():
            rows.append((title, value, ", ".join(map(str, having))))
            title = ""
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)

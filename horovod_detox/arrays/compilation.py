"""Have all that Numba compiles be there before a job begins."""

import logging
from pathlib import Path

import numpy as np

from horovod_detox.arrays import host_digests, host_kernels
from horovod_detox.arrays.nh import Key

log = logging.getLogger("horovod_detox")


def prepare() -> None:
    """Load all kernels from disk, or compile them and say so, as it takes a while."""
    compiled = Path(host_kernels._mean.stats.cache_path or ".")
    if not all(_is_younger(compiled, name) for name in ("host_kernels", "host_digests")):
        log.warning("compiling the aggregation rules with numba, once on this machine")
    for dtype in (np.float32, np.float64):
        rows = np.ones((3, 2), dtype)
        host_kernels.mean(rows)
        host_kernels.weighted_sum(rows, [0.5, 0.25, 0.25], rows[0])
        host_kernels.trimmed_mean(rows, range(1, 2), 2)
        host_kernels.sign_majority(rows)
        host_kernels.gram(rows, None, None)
    for dtype in (None, "float32"):
        host_digests.digests([np.ones(1, np.int64)], Key(b""), dtype)


def _is_younger(folder: Path, module: str) -> bool:
    """Return whether compiled code in a folder is younger than its source, beside this file."""
    source = Path(__file__).with_name(f"{module}.py").stat().st_mtime
    return any(index.stat().st_mtime > source for index in folder.glob(f"{module}._*.nbi"))

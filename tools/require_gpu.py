"""Exit with 2 and a line that says why if there is no NVIDIA GPU here; needs nothing installed.

python tools/require_gpu.py
"""

import ctypes
import sys
from typing import NoReturn

DRIVER = "libcuda.so.1"


def main() -> None:
    """Print how many GPUs there are, or exit with 2."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        stop(f"the driver's library {DRIVER} is not installed")
    count = ctypes.c_int()
    if error := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        stop(f"CUDA's driver reports error {error}")
    if not count.value:
        stop("CUDA's driver sees none")
    print(f"GPUs: {count.value}", flush=True)


def stop(reason: str) -> NoReturn:
    """Exit with 2, and one line."""
    print(f"There is no GPU here that can be used: {reason}. Nothing was run.", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

"""Check a Horovod that was built with NCCL, as far as that needs no GPU.

python tools/build_horovod.py --nccl
python tools/check_nccl.py
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

OPERATIONS = ("alltoall", "broadcast")
"""What horovod_detox does with tensors on a GPU; they hold 64-bit words."""


def main() -> None:
    """Print what was found, and what could not be checked; exit with 1 if something is wrong."""
    import horovod.torch as hvd
    import torch

    extension = import_module("horovod.torch.mpi_lib_v2")
    failed = False
    for what, is_so in findings(hvd, extension):
        print(f"{'yes' if is_so else 'NO '}  {what}")
        failed |= not is_so
    print(f"torch {torch.__version__}, NCCL {hvd.nccl_built()}")
    if torch.cuda.is_available():
        print("Not checked: whether it runs; start a job on the GPUs of this machine.")
    else:
        print(
            "Not checked: whether it runs, for there is no GPU; it was imported without a driver."
        )
    sys.exit(failed)


def findings(hvd: ModuleType, extension: ModuleType) -> Iterator[tuple[str, bool]]:
    """Yield what must be so, and whether it is."""
    yield "Horovod says that it was built with NCCL", bool(hvd.nccl_built())
    yield "with CUDA", bool(hvd.cuda_built())
    yield "and with Gloo, for what lies in main memory", bool(hvd.gloo_built())
    yield "its extension is linked to NCCL", "libnccl.so.2" in needed_libraries(extension)
    for operation in OPERATIONS:
        name = f"horovod_torch_{operation}_async_torch_cuda_LongTensor"
        yield f"it has {operation} for tensors on a GPU", hasattr(extension, name)


def needed_libraries(extension: ModuleType) -> str:
    """Return what the dynamic linker is told that the extension needs."""
    command = ["readelf", "--dynamic", str(extension.__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()

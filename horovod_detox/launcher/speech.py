"""What the ranks of a job say to whoever started it: one of them, for all."""

import sys
import time
from typing import NoReturn

from horovod_detox import process
from horovod_detox.remedies import BAD_INPUT


def say(text: str) -> None:
    """Write a line to stderr, on rank 0 alone."""
    if process.rank() == 0:
        _write(text)


def refuse(reason: str) -> NoReturn:
    """End this process because of bad input: rank 0 says why.

    Another rank waits for its launcher to end the job. When that does not come, the reason is not
    one of rank 0, and it says its own.

    Raises:
        SystemExit: always, with the exit code of bad input.
    """
    rank = process.rank()
    if rank == 0:
        _write(reason)
    else:
        time.sleep(process.PATIENCE)
        _write(f"rank {rank}: {reason}")
    sys.exit(BAD_INPUT)


def _write(text: str) -> None:
    print(f"horovod_detox: {text}", file=sys.stderr, flush=True)

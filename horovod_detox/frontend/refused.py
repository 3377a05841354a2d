"""What Horovod offers and redundancy groups cannot keep, refused with the reason."""

from typing import Any, NoReturn


def join(device: int = -1) -> NoReturn:
    """Refuse to let a rank finish early.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "hvd.join() works with allreduce only: a rank without data would leave its group's vote. "
        "Give every rank the same number of batches"
    )


class SyncBatchNorm:
    """Refuse to synchronise batch statistics over ranks.

    Raises:
        ValueError: always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "SyncBatchNorm averages batch statistics over all ranks, past the vote: one faulty "
            "rank would corrupt every gradient. Use plain BatchNorm: its statistics are those of "
            "the group's batch, identical inside a group"
        )

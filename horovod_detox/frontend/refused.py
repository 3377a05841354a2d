"""What Horovod offers and redundancy groups cannot keep, refused with the reason."""

from typing import Any


class SyncBatchNorm:
    """Refuse to synchronise batch statistics over ranks.

    Raises:
        ValueError: always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "SyncBatchNorm averages batch statistics over all ranks without a vote: one faulty "
            "rank would corrupt every gradient. Use plain BatchNorm: its statistics are those of "
            "the group's batch, identical inside a group"
        )

"""Horovod's collectives as a script calls them: the others see who waits, and nobody for ever."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from horovod_detox.exchange.waits import waits
from horovod_detox.frontend.lost import explained

KINDS = (
    "allreduce",
    "allgather",
    "broadcast",
    "alltoall",
    "reducescatter",
    "barrier",
    "join",
    "synchronize",
)


def is_collective(name: str) -> bool:
    """Return whether a function of this name is a collective of Horovod, or begins one."""
    return not name.startswith("_") and any(kind in name for kind in KINDS)


def call_watched(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    process_set: Any,
    name: object = None,
) -> Any:
    """Call a collective; what begins one, and does not wait, is just called.

    Args:
        function: the collective, with its name.
        args, kwargs: what it is called with.
        process_set: of the ranks that take part.
        name: what the script calls it; None: it has no name.

    Raises:
        ExchangeTimeout: when some rank does not take part.
    """
    if "async" in function.__name__:
        return function(*args, **kwargs)
    what = f"hvd.{function.__name__}" + (f"({name!r})" if name else "")
    with waits.waiting(what, process_set.ranks if process_set.process_set_id else ()):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            meaning = explained(error)
            if meaning is error:
                raise
            raise meaning from error

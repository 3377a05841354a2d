"""Horovod's collectives as a script calls them: the others see who waits, and nobody for ever."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
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


def watched(
    function: Callable[..., Any], everybody: Any, enter: Callable[[Any], bool]
) -> Callable[..., Any]:
    """Return a collective in which the others see who waits; what begins one does not wait.

    Args:
        function: the collective.
        everybody: the process set of all ranks, where the call names none.
        enter: is called before with the process set; returns whether the call waits for others.

    Returns:
        What raises `ExchangeTimeout` when some rank does not take part.
    """
    signature = inspect.signature(function)
    begins = "async" in function.__name__

    @wraps(function)
    def collective(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        process_set = given.get("process_set") or everybody
        if not enter(process_set) or begins:
            return function(*args, **kwargs)
        name = given.get("name")
        what = f"hvd.{function.__name__}" + (f"({name!r})" if name else "")
        with waits.waiting(what, process_set.ranks if process_set.process_set_id else ()):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                meaning = explained(error)
                if meaning is error:
                    raise
                raise meaning from error

    return collective


def collectives_of(
    namespace: Mapping[str, Any], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> dict[str, Any]:
    """Return the collectives of a module by name, wrapped."""
    return {
        name: wrap(function)
        for name, function in namespace.items()
        if inspect.isfunction(function) and is_collective(name)
    }

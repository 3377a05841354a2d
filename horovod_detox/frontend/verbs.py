"""Horovod's collectives as a script calls them: the others see who waits, and nobody for ever."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from horovod_detox.exchange.waits import waits
from horovod_detox.frontend.lost import explained
from horovod_detox.frontend.unnamed import OBJECT, unnamed

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
    function: Callable[..., Any],
    everybody: Any,
    enter: Callable[[Any, str], bool],
    is_numbered: bool = False,
) -> Callable[..., Any]:
    """Return a collective in which the others see who waits; what begins one does not wait.

    Args:
        function: the collective.
        everybody: the process set of all ranks, where the call names none.
        enter: is called before with the process set and what others are told; returns whether the
            call waits for others.
        is_numbered: whether Horovod numbers those to which the script gives no name.

    Returns:
        What raises `ExchangeTimeout` when some rank does not take part.
    """
    signature = inspect.signature(function)
    begins = "async" in function.__name__
    is_of_objects = function.__name__.endswith("_object")
    needs_a_name = "name" in signature.parameters and (is_numbered or is_of_objects)

    @wraps(function)
    def collective(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = call.arguments
        process_set = given.get("process_set") or everybody
        name = given.get("name")
        what = f"hvd.{function.__name__}" + (f"({name!r})" if name else "")
        is_waited_for = enter(process_set, what) and not begins
        if needs_a_name and name is None:
            given["name"] = OBJECT if is_of_objects else unnamed.next(process_set.ranks or ())
        if not is_waited_for:
            return function(*call.args, **call.kwargs)
        with waits.waiting(what, process_set.ranks if process_set.process_set_id else ()):
            try:
                return function(*call.args, **call.kwargs)
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

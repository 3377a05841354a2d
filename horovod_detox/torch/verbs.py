"""Horovod's collectives as a script enters them: with no exchange left that others wait in.

A rank that lacks gradients after a backward pass, and comes here instead of to another pass, would
wait for ranks that wait for it.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any

import horovod.torch as hvd

from horovod_detox.frontend.verbs import call_watched, is_collective
from horovod_detox.torch import passes


def meeting(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collectives of a module by name, each so that the ranks meet before it."""
    return {
        name: after_exchanges(function)
        for name, function in namespace.items()
        if inspect.isfunction(function) and is_collective(name)
    }


@cache
def after_exchanges(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a collective before which the ranks meet in the exchanges that were postponed."""
    signature = inspect.signature(function)

    @wraps(function)
    def collective(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        process_set = given.get("process_set") or hvd.global_process_set
        if passes.any_postponed():
            passes.meet(process_set.ranks or ())
        return call_watched(function, args, kwargs, process_set, given.get("name"))

    return collective

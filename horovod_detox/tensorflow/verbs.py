"""Horovod's collectives as a script calls them eagerly: the others see who waits there."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_detox.frontend.verbs import call_watched, is_collective


def watched(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collectives of a module by name, each so that the others see who waits in it."""
    return {
        name: _watched(function)
        for name, function in namespace.items()
        if inspect.isfunction(function) and is_collective(name)
    }


@cache
def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @wraps(function)
    @tf.autograph.experimental.do_not_convert
    def collective(*args: Any, **kwargs: Any) -> Any:
        if not tf.executing_eagerly():  # a node of a graph is made, and nothing is waited for
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        process_set = given.get("process_set") or hvd.global_process_set
        return call_watched(function, args, kwargs, process_set, given.get("name"))

    return collective

"""Horovod's collectives as a script calls them: the others see who waits there."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_detox.frontend.verbs import collectives_of, watched
from horovod_detox.tensorflow.inside import inside


def waiting(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collectives of a module by name, each so that the others see who waits in it.

    In a `tf.function` a node of the graph is made, and nothing is waited for: the function is what
    a rank may wait in.
    """
    return collectives_of(namespace, _waiting)


@cache
def _waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.autograph.experimental.do_not_convert(
        watched(function, hvd.global_process_set, _enter)
    )


def _enter(process_set: Any, what: str) -> bool:
    is_eager = tf.executing_eagerly()
    if not is_eager:
        inside.note(what, process_set.ranks if process_set.process_set_id else ())
    return is_eager

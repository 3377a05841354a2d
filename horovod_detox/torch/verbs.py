"""Horovod's collectives as a script enters them: with no exchange left that others wait in.

A rank that lacks gradients after a backward pass, and comes here instead of to another pass, would
wait for ranks that wait for it.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import horovod.torch as hvd
from horovod.torch import mpi_ops

from horovod_detox.frontend.verbs import collectives_of, watched
from horovod_detox.torch import passes


def meeting(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collectives of a module by name, each so that the ranks meet before it."""
    return collectives_of(namespace, after_exchanges)


@cache
def after_exchanges(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a collective before which the ranks meet in the exchanges that were postponed."""
    if hasattr(function, "__wrapped__"):  # as Horovod's module has them, see below
        return function
    return watched(function, hvd.global_process_set, _meet, is_numbered=True)


def _meet(process_set: Any, _: str) -> bool:
    if passes.any_postponed():
        passes.meet(process_set.ranks or ())
    return True


# What the autograd functions of Horovod's collectives call in a backward pass.
for _name in ("allreduce", "grouped_allreduce", "allgather", "grouped_allgather", "alltoall"):
    setattr(mpi_ops, _name, after_exchanges(getattr(mpi_ops, _name)))

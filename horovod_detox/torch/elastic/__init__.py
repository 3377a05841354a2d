"""`horovod.torch.elastic`: states and samplers as they are."""

from collections.abc import Callable
from typing import Any

from horovod.common.elastic import run_fn
from horovod.torch.elastic import *  # noqa: F403

from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.torch.context import context
from horovod_detox.torch.elastic import sampler as sampler
from horovod_detox.torch.elastic import state as state


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function on a state as Horovod does; after a reset the ranks agree anew on settings."""
    return run_fn(func, context.reset)


__getattr__ = fall_through(__name__)

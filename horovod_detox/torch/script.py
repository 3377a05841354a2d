"""What unmodified PyTorch scripts get outside of `horovod.torch`: samplers that deal to groups."""

import functools
from typing import Any

import horovod.torch as hvd
import horovod.torch.elastic.sampler as elastic
import torch
from torch.utils.data import DistributedSampler

from horovod_detox.launcher.random_states import RandomState
from horovod_detox.launcher.stand_in import Frontend, Script
from horovod_detox.torch.context import context
from horovod_detox.torch.optimizer import DistributedOptimizer


def take_over(script: Script) -> Frontend:
    """Serve a script: call this once in a process."""
    state = RandomState("PyTorch", read_state, torch.manual_seed)
    frontend = Frontend(script, "horovod.torch", hvd, context, state)
    context.before_engines = frontend.before_engines
    # By the name of this module Horovod's broadcast_optimizer_state knows a distributed optimizer,
    # of which no rank may step alone; its own name for that function is one of those replaced.
    DistributedOptimizer.__module__ = "horovod.torch.optimizer"
    _replace_samplers(script)
    return frontend


def read_state() -> list[bytes]:
    """Return the state of torch's generators, that of the current GPU included."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return [state.numpy().tobytes() for state in states]


def _replace_samplers(script: Script) -> None:
    """Have torch's sampler, its subclasses and Horovod's elastic one deal to groups."""
    construct = DistributedSampler.__init__

    @functools.wraps(construct)
    def deal(
        self: Any, dataset: Any, num_replicas: Any = None, rank: Any = None, *args: Any, **more: Any
    ) -> None:
        if rank is not None:
            num_replicas, rank = script.share("DistributedSampler", num_replicas, rank)
        construct(self, dataset, num_replicas, rank, *args, **more)

    DistributedSampler.__init__ = deal
    elastic.size = lambda: script.share("ElasticSampler", hvd.size(), hvd.rank())[0]
    elastic.rank = lambda: script.share("ElasticSampler", hvd.size(), hvd.rank())[1]

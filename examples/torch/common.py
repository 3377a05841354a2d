"""What the torch examples share: the job, and lies in plain Horovod."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import torch

import horovod_detox.torch as hvd
from horovod_detox.arrays.namespaces import like, to_numpy
from horovod_detox.attacks import Attack, FaultyRank
from horovod_detox.vote.groups import Groups

sys.path.append(str(Path(__file__).parents[1]))  # for what the examples of all frameworks share
from comparison import Job, Run, flags, verdict

__all__ = ["Run", "flags", "job", "lie", "verdict", "weights_digest"]


def lie(
    parameters: Iterable[torch.Tensor], attack: Attack | None, rank: int, groups: Groups
) -> None:
    """Let an attack corrupt this rank's gradients before plain Horovod sees them.

    Our own `DistributedOptimizer` takes `attack=` instead. Here the attack acts on each parameter
    by itself, once per backward pass.
    """
    if attack is None:
        return
    if attack.omniscient:
        sys.exit(f"{type(attack).__name__} must see all gradients: plain Horovod shows it none")
    for parameter in parameters:
        parameter.register_hook(_liar(FaultyRank(attack, rank, groups)))


def _liar(liar: FaultyRank) -> Callable[[torch.Tensor], torch.Tensor]:
    steps = count()

    def corrupt(gradient: torch.Tensor) -> torch.Tensor:
        copy = liar.corrupt(next(steps), to_numpy(gradient).flatten())
        return like(gradient, copy).view_as(gradient)

    return corrupt


def weights_digest(model: torch.nn.Module) -> str:
    """Return a digest of the bits of all parameters.

    Buffers do not count: BatchNorm's statistics are those of a group's own batches.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


job = Job(hvd, weights_digest)

"""Tensors on a GPU with a Horovod that was built without CUDA: they travel through main memory.

Such a Horovod has functions for them, which cannot end: "Requested device context manager with GPU
device but not compiled with CUDA" is raised in its own thread. (Read in 0.28.1, not run.)
"""

import logging
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from horovod_detox.exchange.collectives import Handle, Message
from horovod_detox.torch.collectives import HorovodCollectives

log = logging.getLogger("horovod_detox")


class ThroughMainMemory(HorovodCollectives):
    """Collectives that copy tensors from their device before they send, and back after it."""

    _is_told = False

    def allgather_words(self, name: str, facts: np.ndarray, words: torch.Tensor) -> Handle:
        """Send facts and words, of any lengths, to all; return messages by sender."""
        if words.device.type == "cpu":
            return super().allgather_words(name, facts, words)
        return _Copied(super().allgather_words(name, facts, self._host(words)), words, _messages)

    def alltoall(
        self,
        name: str,
        facts: np.ndarray,
        parts: Sequence[torch.Tensor],
        spare: torch.Tensor | None = None,
    ) -> Handle:
        """Send the facts to all and `parts[j]` to rank j; return messages by sender."""
        if parts[0].device.type == "cpu":
            return super().alltoall(name, facts, parts, spare)
        sent = [self._host(part) for part in parts]
        return _Copied(super().alltoall(name, facts, sent), parts[0], _messages)

    def add_words(self, name: str, words: torch.Tensor) -> Handle:
        """Add up words as int64, with zeros for ranks that have joined: `(w,)`."""
        if words.device.type == "cpu":
            return super().add_words(name, words)
        return _Copied(super().add_words(name, self._host(words)), words, torch.Tensor.to)

    def broadcast(self, name: str, words: torch.Tensor, root: int) -> Handle:
        """Overwrite words by those of a rank of the set."""
        if words.device.type == "cpu":
            return super().broadcast(name, words, root)
        host = self._host(words)
        return _Copied(super().broadcast(name, host, root), words, lambda _, __: words.copy_(host))

    def _host(self, words: torch.Tensor) -> torch.Tensor:
        """Return words in main memory, where they are there when this returns."""
        if not ThroughMainMemory._is_told:
            ThroughMainMemory._is_told = True
            if self.rank == 0:
                log.warning(
                    "Horovod was built without CUDA: gradients on a GPU are exchanged through main "
                    "memory, and other operations of Horovod fail for tensors on a GPU. To build "
                    "it with NCCL: tools/build_horovod.py --nccl"
                )
        return words.cpu()


class _Copied:
    """An operation under way in main memory, whose result goes to the device of some words."""

    def __init__(self, handle: Handle, words: torch.Tensor, copy: Any) -> None:
        self._handle, self._device, self._copy = handle, words.device, copy

    def is_done(self) -> bool:
        return self._handle.is_done()

    def wait(self) -> Any:
        return self._copy(self._handle.wait(), self._device)


def _messages(messages: list[Message], device: torch.device) -> list[Message]:
    return [Message(message.facts, message.words.to(device)) for message in messages]


def collectives(scope: str, timeout: float, process_set: Any = hvd.global_process_set) -> Any:
    """Return the collectives that fit how this Horovod was built."""
    kind = HorovodCollectives if takes_devices() else ThroughMainMemory
    return kind(scope, timeout, process_set)


def takes_devices() -> bool:
    """Return whether this Horovod can exchange tensors on a GPU."""
    return bool(hvd.cuda_built() or hvd.rocm_built())

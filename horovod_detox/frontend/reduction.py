"""Horovod's arguments that optimizers and tapes of all frameworks have in common."""

import warnings
from dataclasses import dataclass
from typing import Any

from horovod_detox.attacks import Attack


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """How gradients are reduced, in Horovod's words, with these meanings.

    Attributes:
        hvd: the module of Horovod that names the operations.
        tensor_type: what `groups` consist of.
        compression: one of `Compression`, or of your own: votes are taken on, and aggregated from,
            the compressed gradients; it must work element by element and be deterministic.
        backward_passes_per_step: gradients are summed locally over so many passes.
        op: Average, or Sum: the average times the number of groups.
        gradient_predivide_factor: accepted; without effect, as no sum can overflow on the way.
        num_groups, groups: accepted and checked; Horovod's fusion groups have no counterpart.
        process_set: the ranks that train together; groups are formed among them.
        attack: the fault to rehearse, the same on every rank; None: HOROVOD_DETOX_ATTACK.

    Raises:
        ValueError: for what Horovod refuses, and for what cannot work, with the reason.
    """

    hvd: Any
    tensor_type: type = object
    compression: Any
    backward_passes_per_step: int = 1
    op: Any
    gradient_predivide_factor: float
    num_groups: int
    groups: Any
    process_set: Any
    attack: Attack | None

    def __post_init__(self) -> None:
        groups = self.groups
        if self.num_groups:
            warnings.warn(
                "num_groups has been replaced by groups and will be removed", DeprecationWarning, 4
            )
            groups = self.num_groups if groups is None else groups
        self._check_operation()
        _check_fusion_groups(groups, self.tensor_type)

    def factor(self, num_groups: int) -> int:
        """Return what the aggregate of k votes is multiplied by."""
        return num_groups if self.op == self.hvd.Sum else 1

    def _check_operation(self) -> None:
        if self.op == self.hvd.Adasum:
            raise ValueError(
                "op=Adasum combines gradients pairwise, which one faulty rank corrupts, and cannot "
                "run on votes: use op=Average"
            )
        if self.op not in (self.hvd.Average, self.hvd.Sum):
            raise ValueError(
                "op must be Average or Sum: one rank alone can decide a min, max or product"
            )
        if self.gradient_predivide_factor != 1.0 and self.op != self.hvd.Average:
            raise ValueError("gradient_predivide_factor is supported with op=Average only")
        if self.backward_passes_per_step <= 0:
            raise ValueError(
                f"backward_passes_per_step = {self.backward_passes_per_step}: it must be positive"
            )


def _check_fusion_groups(groups: Any, tensor_type: type) -> None:
    """Check Horovod's `groups` as it does, though nothing is fused."""
    if groups is None:
        return
    if not isinstance(groups, list):
        if not isinstance(groups, int) or groups < 0:
            raise ValueError("groups must be a non-negative integer or a list of lists of tensors")
        return
    grouped = [tensor for group in groups for tensor in group]
    if not all(isinstance(tensor, tensor_type) for tensor in grouped):
        raise ValueError("groups must consist of tensors")
    if len({id(tensor) for tensor in grouped}) < len(grouped):
        raise ValueError("a parameter can appear only once in groups")

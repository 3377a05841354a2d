"""What Horovod offers and redundancy groups cannot keep, refused with the reason."""

from typing import Any, NoReturn


def check_reduction(hvd: Any, op: Any, predivide_factor: float = 1.0, passes: int = 1) -> None:
    """Refuse reductions that a vote cannot take the place of.

    Raises:
        ValueError: for anything but Average and Sum, and for what Horovod refuses.
    """
    if op == hvd.Adasum:
        raise ValueError(
            "op=Adasum combines gradients pairwise, which one faulty rank corrupts, and cannot "
            "run on votes: use op=Average"
        )
    if op not in (hvd.Average, hvd.Sum):
        raise ValueError("op must be Average or Sum: min, max and product follow a single rank")
    if predivide_factor != 1.0 and op != hvd.Average:
        raise ValueError("gradient_predivide_factor is supported with op=Average only")
    if passes <= 0:
        raise ValueError(f"backward_passes_per_step = {passes}: it must be positive")


def check_fusion_groups(groups: Any, tensor_type: Any) -> None:
    """Check Horovod's `groups` as it does, though nothing is fused.

    Raises:
        ValueError: unless `groups` is None, a non-negative integer or a list of lists of tensors.
    """
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


def refuse_sparse_signs(parameter: str) -> NoReturn:
    """Refuse to send the signs of a gradient that is mostly zeros.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"the gradient of {parameter} is sparse: mostly zeros, which Compression.sign would turn "
        "into 1: use another compression"
    )


def join(device: int = -1) -> NoReturn:
    """Refuse to let a rank finish early.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "hvd.join() works with allreduce only: a rank without data would leave its group's vote. "
        "Give every rank the same number of batches"
    )


class SyncBatchNorm:
    """Refuse to synchronise batch statistics over ranks.

    Raises:
        ValueError: always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "SyncBatchNorm averages batch statistics over all ranks, past the vote: one faulty "
            "rank would corrupt every gradient. Use plain BatchNorm: its statistics are those of "
            "the group's batch, identical inside a group"
        )

"""The column kernels in torch operations, for tensors on an accelerator; see `host_kernels`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from horovod_detox.arrays.networks import network

Rows = Sequence[torch.Tensor] | torch.Tensor


def mean(rows: Rows) -> torch.Tensor:
    """Average the rows, added up in their order: `(m, b) -> (b,)`."""
    return _divide(_total(rows), len(rows))


def weighted_sum(rows: Rows, shares: Sequence[float], previous: Any = None) -> torch.Tensor:
    """Add up the rows times their shares, in float64 and in their order: `(m, b) -> (b,)`."""
    terms = list(rows) if previous is None else [*rows, previous]
    result = torch.zeros_like(terms[0], dtype=torch.float64)
    for term, share in zip(terms, shares, strict=True):
        result += term.double() * share
    return result.to(terms[0].dtype)


def trimmed_mean(rows: Rows, ranks: range, kept: int | None = None) -> torch.Tensor:
    """Average the values of these ranks in every column: `(m, b) -> (b,)`.

    With `kept`, return the average of so many values nearest to that instead.
    """
    if kept is None:
        return _centre(sort(rows, ranks))
    ordered = sort(rows, range(len(rows)))
    return _mean_around(_centre(ordered[ranks.start : ranks.stop]), ordered, kept)


def sign_majority(rows: Rows) -> torch.Tensor:
    """Take the sign that most rows have in every column, 0 where they tie: `(m, b) -> (b,)`."""
    return torch.sign(_total([torch.sign(row) for row in rows]))


def gram(rows: Rows, reference: torch.Tensor | None, centre: torch.Tensor | None) -> np.ndarray:
    """Return the scalar products of rows and reference: `(m, b) -> (m + 1, m + 1)`."""
    origin = torch.zeros_like(rows[0]) if reference is None else reference
    points = torch.stack([*(row.double() for row in rows), origin.double()])
    points -= points[:-1].mean(0) if centre is None else centre
    return (points @ points.T).cpu().numpy()


def sort(rows: Rows, ranks: range) -> list[torch.Tensor]:
    """Return the values of these ranks in every column: `(m, b)` gives len(ranks) times `(b,)`.

    The rows are not written to.
    """
    wires, spare = [row.clone() for row in rows], torch.empty_like(rows[0])
    for i, j, low, high in network(len(wires), ranks):
        a, b = wires[i], wires[j]
        if low and high:
            torch.minimum(a, b, out=spare)
            wires[i], wires[j], spare = spare, torch.maximum(a, b, out=b), a
        elif low:
            torch.minimum(a, b, out=a)
        else:
            torch.maximum(a, b, out=b)
    return [wires[rank] for rank in ranks]


def _total(rows: Rows) -> torch.Tensor:
    result = rows[0].clone()
    for i in range(1, len(rows)):
        result += rows[i]
    return result


def _divide(values: torch.Tensor, divisor: int) -> torch.Tensor:
    # CUDA multiplies by the reciprocal, with other bits, when the divisor is a Python number.
    return values.div_(torch.full((), divisor, dtype=values.dtype, device=values.device))


def _centre(ordered: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average ordered values; rounding and overflow do not take the result out of their range."""
    least, greatest = ordered[0], ordered[-1]
    if len(ordered) == 1:
        return least
    if len(ordered) == 2:
        return least * 0.5 + greatest * 0.5
    average = _divide(_total(ordered), len(ordered))
    return torch.minimum(torch.maximum(average, least), greatest)


def _mean_around(centre: torch.Tensor, ordered: list[torch.Tensor], kept: int) -> torch.Tensor:
    """Average the `kept` values nearest to the centre, of ordered ones: see `host_kernels`."""
    chosen = []
    for rank in range(kept):
        nearest, *others = ordered[rank::kept]
        for other in others:
            nearest = torch.where(centre - nearest <= other - centre, nearest, other)
        chosen.append(nearest)
    return mean(chosen)

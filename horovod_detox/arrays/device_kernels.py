"""The column kernels in torch operations, for tensors on an accelerator; see `host_kernels`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from horovod_detox.arrays.fused import Tensors, fused
from horovod_detox.arrays.networks import network

Rows = Sequence[torch.Tensor] | torch.Tensor


def mean(rows: Rows) -> torch.Tensor:
    """Average the rows, added up in their order: `(m, b) -> (b,)`."""
    (total,) = fused(_total, list(rows))
    return _divide(total, len(rows))


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
    centre = _centre(fused(_middle, list(rows), ranks), len(ranks))
    if kept is None:
        return centre
    (total,) = fused(_total_around, [centre, *rows], kept)
    return _divide(total, kept)


def sign_majority(rows: Rows) -> torch.Tensor:
    """Take the sign that most rows have in every column, 0 where they tie: `(m, b) -> (b,)`."""
    (majority,) = fused(_sign_of_signs, list(rows))
    return majority


def gram(rows: Rows, reference: torch.Tensor | None, centre: torch.Tensor | None) -> np.ndarray:
    """Return the scalar products of rows and reference: `(m, b) -> (m + 1, m + 1)`."""
    origin = torch.zeros_like(rows[0]) if reference is None else reference
    points = torch.stack([*(row.double() for row in rows), origin.double()])
    points -= points[:-1].mean(0) if centre is None else centre
    return (points @ points.T).cpu().numpy()


def _sorted(rows: Tensors, ranks: range) -> list[torch.Tensor]:
    """Return the values of these ranks in every column: `(m, b)` gives len(ranks) times `(b,)`."""
    wires = list(rows)
    for i, j, low, high in network(len(wires), ranks):
        a, b = wires[i], wires[j]
        if low:
            wires[i] = torch.minimum(a, b)
        if high:
            wires[j] = torch.maximum(a, b)
    return [wires[rank] for rank in ranks]


def _total(rows: Tensors) -> Tensors:
    """Add up the rows in their order."""
    result = rows[0]
    for row in rows[1:]:
        result = result + row
    return (result,)


def _sign_of_signs(rows: Tensors) -> Tensors:
    (total,) = _total([torch.sign(row) for row in rows])
    return (torch.sign(total),)


def _middle(rows: Tensors, ranks: range) -> Tensors:
    """Return the least and the greatest value of these ranks, and with more than two their sum."""
    ordered = _sorted(rows, ranks)
    return ordered if len(ordered) <= 2 else (ordered[0], ordered[-1], *_total(ordered))


def _centre(middle: Tensors, count: int) -> torch.Tensor:
    """Average `count` values; rounding and overflow do not take the result out of their range."""
    if count == 1:
        return middle[0]
    least, greatest, *total = middle
    if not total:
        return least * 0.5 + greatest * 0.5
    return torch.minimum(torch.maximum(_divide(total[0], count), least), greatest)


def _total_around(tensors: Tensors, kept: int) -> Tensors:
    """Add up the `kept` values nearest to the first tensor, of the others: see `host_kernels`."""
    centre, *rows = tensors
    ordered = _sorted(rows, range(len(rows)))
    chosen = []
    for rank in range(kept):
        nearest, *others = ordered[rank::kept]
        for other in others:
            nearest = torch.where(centre - nearest <= other - centre, nearest, other)
        chosen.append(nearest)
    return _total(chosen)


def _divide(values: torch.Tensor, divisor: int) -> torch.Tensor:
    # CUDA multiplies by the reciprocal, with other bits, when the divisor is a Python number.
    return values / torch.full((), divisor, dtype=values.dtype, device=values.device)

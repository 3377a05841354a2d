"""Column kernels for votes in main memory, compiled by Numba.

Each reduces m rows `(b,)` of one element type, float32 or float64, to one, column by column and in
a fixed order: neither tiles nor threads change a bit. `device_kernels` has the same functions for
tensors on an accelerator, with the same bits.

The compiled code is kept on disk, beside this file or in the user's cache folder. Kernels take the
addresses of the rows: Numba would compile a list of arrays anew for every length.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import (
    carray,  # pyright: ignore[reportPrivateImportUsage]
    njit,
    types,
)
from numba.core import cgutils
from numba.extending import intrinsic

from horovod_detox import process
from horovod_detox.arrays.networks import network

_TILE_BYTES = 16 * 1024
"""A tile of all rows takes about so much: half of the smallest first-level caches."""

Rows = Sequence[np.ndarray] | np.ndarray
"""Rows of one length and element type, each contiguous."""


def thread_budget() -> int:
    """Return how many threads this process may use: its share of the host's cores, or fewer.

    The ranks on a host share its cores; OMP_NUM_THREADS and `torch.set_num_threads` set lower
    limits.
    """
    limits = [len(os.sched_getaffinity(0)) // process.local_size()]
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        limits.append(int(os.environ["OMP_NUM_THREADS"]))
    if "torch" in sys.modules:
        limits.append(sys.modules["torch"].get_num_threads())
    return max(1, min(limits))


def mean(rows: Rows) -> np.ndarray:
    """Average the rows, added up in their order: `(m, b) -> (b,)`."""
    result = np.empty_like(rows[0])
    _mean(_addresses(rows), result)
    return result


def weighted_sum(rows: Rows, shares: Sequence[float], previous: Any = None) -> np.ndarray:
    """Add up the rows times their shares, in float64 and in their order: `(m, b) -> (b,)`.

    Args:
        rows: may be none, if there is a `previous`.
        shares: one for each row, and one for `previous`, `(b,)`.
    """
    terms = list(rows) if previous is None else [*rows, previous]
    result = np.empty_like(terms[0])
    _weighted_sum(_addresses(terms), np.array(shares, np.float64), result)
    return result


def trimmed_mean(rows: Rows, ranks: range, kept: int | None = None) -> np.ndarray:
    """Average the values of these ranks in every column: `(m, b) -> (b,)`.

    Args:
        rows: of finite values.
        ranks: 0 is the smallest value; the one or two in the middle give the median.
        kept: return the average of the `kept` values nearest to that instead; of two equally near
            values the smaller is taken.
    """
    result = np.empty_like(rows[0])
    comparators = _comparators(len(rows), ranks if kept is None else range(len(rows)))
    _trimmed_mean(_addresses(rows), comparators, ranks.start, ranks.stop, kept or 0, result)
    return result


def sign_majority(rows: Rows) -> np.ndarray:
    """Take the sign that most rows have in every column, 0 where they tie: `(m, b) -> (b,)`."""
    result = np.empty_like(rows[0])
    _sign_majority(_addresses(rows), result)
    return result


def gram(rows: Rows, reference: np.ndarray | None, centre: np.ndarray | None) -> np.ndarray:
    """Return the scalar products of rows and reference: `(m, b) -> (m + 1, m + 1)`.

    Sums are taken in float64, in an order that may differ between kinds of processors.

    Args:
        rows: of finite values.
        reference: `(b,)`; None: the origin.
        centre: `(b,)`, where all are seen from; None: the mean of the rows.
    """
    m = len(rows)
    last = np.zeros_like(rows[0]) if reference is None else reference
    products = np.zeros((m + 2, m + 2))
    _gram(_addresses([*rows, last]), last, last[:0] if centre is None else centre, products)
    lower = np.tril(products[: m + 1, : m + 1])
    return lower + np.tril(lower, -1).T


def _addresses(rows: Rows) -> np.ndarray:
    """Return where the rows begin in memory."""
    dtype, shape = rows[0].dtype, rows[0].shape
    if not all(
        row.dtype == dtype and row.shape == shape and row.flags.c_contiguous for row in rows
    ):
        raise ValueError("rows must be contiguous, of one length and one element type")
    return np.array([row.__array_interface__["data"][0] for row in rows])


@cache
def _comparators(n: int, ranks: range) -> np.ndarray:
    return np.array(network(n, ranks), np.int64).reshape(-1, 4)


@intrinsic
def address_as_pointer(typing: Any, address: Any) -> Any:
    """Turn an address, an integer, into a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@njit(cache=True, nogil=True)
def _tile(rows: int, item: Any) -> int:
    """Return how many columns to work on at a time, a multiple of 64."""
    return max(_TILE_BYTES // (rows * item) // 64, 1) * 64


@njit(cache=True, nogil=True)
def _row(address: int, like: np.ndarray) -> np.ndarray:
    """Return the row at an address, of the length and element type of another."""
    return carray(address_as_pointer(address), like.shape, like.dtype)  # type: ignore[call-arg]


@njit(cache=True, nogil=True)
def _mean(addresses: np.ndarray, result: np.ndarray) -> None:
    n, width = len(addresses), len(result)
    tile = _tile(2, result.itemsize)
    for start in range(0, width, tile):
        total = result[start : start + tile]
        for i in range(n):
            row = _row(addresses[i], result)[start : start + tile]
            for x in range(len(total)):
                total[x] = row[x] if i == 0 else total[x] + row[x]
        for x in range(len(total)):
            total[x] /= result.dtype.type(n)


@njit(cache=True, nogil=True)
def _weighted_sum(addresses: np.ndarray, shares: np.ndarray, result: np.ndarray) -> None:
    tile = _tile(2, 8)
    sums = np.empty(tile)
    for start in range(0, len(result), tile):
        part = result[start : start + tile]
        sums[:] = 0.0
        for i in range(len(addresses)):
            row = _row(addresses[i], result)[start : start + tile]
            share = shares[i]
            for x in range(len(row)):
                sums[x] += row[x] * share
        for x in range(len(part)):
            part[x] = sums[x]


@njit(cache=True, nogil=True)
def _sign_majority(addresses: np.ndarray, result: np.ndarray) -> None:
    zero = result.dtype.type(0)
    tile = _tile(2, result.itemsize)
    for start in range(0, len(result), tile):
        part = result[start : start + tile]
        part[:] = zero
        for i in range(len(addresses)):
            row = _row(addresses[i], result)[start : start + tile]
            for x in range(len(part)):
                part[x] += result.dtype.type(row[x] > zero) - result.dtype.type(row[x] < zero)
        for x in range(len(part)):
            part[x] = result.dtype.type(part[x] > zero) - result.dtype.type(part[x] < zero)


@njit(cache=True, nogil=True)
def _trimmed_mean(
    addresses: np.ndarray,
    comparators: np.ndarray,
    first: int,
    stop: int,
    kept: int,
    result: np.ndarray,
) -> None:
    n = len(addresses)
    tile = _tile(n, result.itemsize)
    ordered = np.empty((n, tile), result.dtype)
    centre = np.empty(tile, result.dtype)
    for start in range(0, len(result), tile):
        part = result[start : start + tile]
        for i in range(n):
            row, wire = _row(addresses[i], result)[start : start + tile], ordered[i]
            for x in range(len(row)):
                wire[x] = row[x]
        _sort(ordered, comparators)
        if kept:
            _centre(ordered[first:stop], centre)
            _mean_around(centre, ordered, kept, part)
        else:
            _centre(ordered[first:stop], part)


@njit(cache=True, nogil=True)
def _sort(rows: np.ndarray, comparators: np.ndarray) -> None:
    """Apply a sorting network; see `sorting.network`."""
    for c in range(len(comparators)):
        i, j, low, high = comparators[c]
        a, b = rows[i], rows[j]
        if low and high:
            for x in range(len(a)):
                u, v = a[x], b[x]
                a[x] = u if u < v else v
                b[x] = v if u < v else u
        elif low:
            for x in range(len(a)):
                a[x] = a[x] if a[x] < b[x] else b[x]
        else:
            for x in range(len(a)):
                b[x] = b[x] if a[x] < b[x] else a[x]


@njit(cache=True, nogil=True)
def _centre(ordered: np.ndarray, result: np.ndarray) -> None:
    """Average ordered values; rounding and overflow do not take the result out of their range."""
    n = len(ordered)
    least, greatest = ordered[0], ordered[n - 1]
    if n == 1:
        for x in range(len(result)):
            result[x] = least[x]
    elif n == 2:
        half = result.dtype.type(0.5)
        for x in range(len(result)):
            result[x] = least[x] * half + greatest[x] * half
    else:
        for x in range(len(result)):
            result[x] = least[x]
        for i in range(1, n):
            row = ordered[i]
            for x in range(len(result)):
                result[x] += row[x]
        for x in range(len(result)):
            average = result[x] / result.dtype.type(n)
            result[x] = min(max(average, least[x]), greatest[x])


@njit(cache=True, nogil=True)
def _mean_around(centre: np.ndarray, ordered: np.ndarray, kept: int, result: np.ndarray) -> None:
    """Average the `kept` of the ordered values that are nearest to the centre.

    These are neighbours, and of the values whose ranks differ by a multiple of `kept` exactly one
    is among any `kept` neighbours: the nearest of them.
    """
    nearest = np.empty_like(centre)
    for rank in range(kept):
        nearest[:] = ordered[rank]
        for other in range(rank + kept, len(ordered), kept):
            row = ordered[other]
            for x in range(len(row)):
                if centre[x] - nearest[x] > row[x] - centre[x]:
                    nearest[x] = row[x]
        for x in range(len(result)):
            result[x] = nearest[x] if rank == 0 else result[x] + nearest[x]
    for x in range(len(result)):
        result[x] /= result.dtype.type(kept)


@njit(cache=True, nogil=True)
def _gram(
    addresses: np.ndarray, reference: np.ndarray, centre: np.ndarray, products: np.ndarray
) -> None:
    """Add up the products of the rows, the last of which is the reference: the lower triangle."""
    n = len(addresses)
    tile = _tile(n, 4)  # twice as wide as others, to call `_multiply` less often
    points = np.zeros((n + n % 2, tile))
    origin = np.empty(tile)
    for start in range(0, len(reference), tile):
        count = min(tile, len(reference) - start)
        for i in range(n):
            row = _row(addresses[i], reference)[start : start + count]
            point = points[i]
            for x in range(count):
                point[x] = row[x]
            point[count:] = 0.0
        if len(centre):
            origin[:count] = centre[start : start + count]
        else:
            _average(points[: n - 1], origin)
        for i in range(n):
            point = points[i]
            for x in range(count):
                point[x] -= origin[x]
        for i in range(0, n, 2):
            for j in range(0, i + 1, 2):
                _multiply(points, i, j, products)


@njit(cache=True, nogil=True)
def _average(points: np.ndarray, result: np.ndarray) -> None:
    result[:] = 0.0
    for i in range(len(points)):
        point = points[i]
        for x in range(len(result)):
            result[x] += point[x]
    for x in range(len(result)):
        result[x] /= len(points)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _multiply(points: np.ndarray, i: int, j: int, products: np.ndarray) -> None:
    """Add the products of points i and i + 1 with points j and j + 1."""
    a, b, c, d = points[i], points[i + 1], points[j], points[j + 1]
    ac = ad = bc = bd = 0.0
    for x in range(points.shape[1]):
        ac += a[x] * c[x]
        ad += a[x] * d[x]
        bc += b[x] * c[x]
        bd += b[x] * d[x]
    products[i, j] += ac
    products[i, j + 1] += ad
    products[i + 1, j] += bc
    products[i + 1, j + 1] += bd

"""Smallest, largest and largest-magnitude weight of every scale group: one pass over the stored codes."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numba import prange

from workbench.kernels.codes import as_codes, code_of_rank, rank, value
from workbench.kernels.runtime import exclusive, kernel, take, threads

_PARTS = 64


@kernel()
def _least_and_most(codes):
    """Return the smallest and largest rank; on integers, so that the search vectorizes whatever the float type."""
    least = rank(codes[0])
    most = least
    for j in range(codes.shape[0]):
        here = rank(codes[j])
        least = min(least, here)
        most = max(most, here)
    return least, most


@kernel()
def extrema_of(codes):
    """Return the smallest, the largest, and the first weight of largest magnitude."""
    least, most = _least_and_most(codes)
    smallest = value(code_of_rank(least, codes[0]))
    largest = value(code_of_rank(most, codes[0]))
    peak = largest if largest > -smallest else smallest
    if largest == -smallest:
        for j in range(codes.shape[0]):
            if abs(value(codes[j])) == largest:
                peak = value(codes[j])
                break
    return smallest, largest, peak


@kernel(parallel=True)
def _extrema(codes, group, low, high, peak, counter, workers):
    rows, columns = codes.shape
    parts = min(rows, _PARTS)
    for _ in prange(workers):
        part = take(counter)
        while part < parts:
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                for g in range(low.shape[1]):
                    found = extrema_of(codes[row, g * group : min(columns, (g + 1) * group)])
                    low[row, g] = found[0]
                    high[row, g] = found[1]
                    peak[row, g] = found[2]
            part = take(counter)


@exclusive
def group_extrema(
    rows: np.ndarray, group: int
) -> tuple[
    Float[np.ndarray, "rows groups"],
    Float[np.ndarray, "rows groups"],
    Float[np.ndarray, "rows groups"],
]:
    """Find each group's smallest weight, largest weight, and first weight of largest magnitude.

    Args:
        rows: weights (rows, columns) in any floating-point dtype, as stored.
        group: how many consecutive weights of a row form a group; the last group of a row may be shorter.

    Returns:
        Three arrays (rows, ceil(columns / group)), float32 (float64 for float64 weights). A group with NaN or infinity
        has at least one non-finite entry in the first two, so that checking them checks every weight.
    """
    codes = as_codes(rows)
    groups = -(-codes.shape[1] // group)
    kind = np.float64 if codes.dtype == np.float64 else np.float32
    low, high, peak = (np.empty((codes.shape[0], groups), dtype=kind) for _ in range(3))
    _extrema(codes, group, low, high, peak, np.zeros(1, dtype=np.int64), threads())
    return low, high, peak

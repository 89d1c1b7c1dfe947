"""Smallest, largest and largest-magnitude weight of every scale group: one pass over the stored codes."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numba import prange

from workbench.kernels.codes import as_codes, code_of_rank, rank, value
from workbench.kernels.runtime import exclusive, kernel


@kernel()
def _row_extrema(codes, group, low, high, peak):
    """Fill one row's groups; the search runs on integer ranks, so that it vectorizes whatever the float type."""
    columns = codes.shape[0]
    for g in range(low.shape[0]):
        start = g * group
        stop = min(columns, start + group)
        least = rank(codes[start])
        most = least
        for j in range(start, stop):
            here = rank(codes[j])
            least = min(least, here)
            most = max(most, here)
        smallest = value(code_of_rank(least, codes[start]))
        largest = value(code_of_rank(most, codes[start]))
        low[g] = smallest
        high[g] = largest
        if largest > -smallest:
            peak[g] = largest
        elif largest < -smallest:
            peak[g] = smallest
        else:
            peak[g] = largest
            for j in range(start, stop):
                if abs(value(codes[j])) == largest:
                    peak[g] = value(codes[j])
                    break


@kernel(parallel=True)
def _extrema(codes, group, low, high, peak):
    for row in prange(codes.shape[0]):
        _row_extrema(codes[row], group, low[row], high[row], peak[row])


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
    _extrema(codes, group, low, high, peak)
    return low, high, peak

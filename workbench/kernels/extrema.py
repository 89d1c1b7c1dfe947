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
def _row_extrema(codes, group, low, high, peak):
    """Fill one row's groups."""
    for g in range(low.shape[0]):
        some = codes[g * group : min(codes.shape[0], (g + 1) * group)]
        least, most = _least_and_most(some)
        smallest = value(code_of_rank(least, some[0]))
        largest = value(code_of_rank(most, some[0]))
        low[g] = smallest
        high[g] = largest
        peak[g] = largest if largest > -smallest else smallest
        if largest == -smallest:
            # A tie: the one that comes first.
            for j in range(some.shape[0]):
                if abs(value(some[j])) == largest:
                    peak[g] = value(some[j])
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

"""The weighted squared error of every scale group under several candidate scales, in one pass over the weights."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numba import prange

from workbench.grids.grid import Grid
from workbench.kernels.exact import PARTS
from workbench.kernels.runtime import exclusive, kernel
from workbench.kernels.tables import cell_of, code_table


@kernel(parallel=True)
def _weighted(weight, importance, slice_of, group, scales, offsets, table, errors):
    first, shift, floor, top, _steps, thresholds, levels = table
    rows, columns = weight.shape
    parts = min(rows, PARTS)
    for part in prange(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if scales.shape[1] == 1 else row
            shares = importance[slice_of[row]]
            for k in range(scales.shape[0]):
                for g in range(scales.shape[2]):
                    s = np.float64(scales[k, at, g])
                    o = offsets[k, at, g]
                    total = 0.0
                    for j in range(g * group, min(columns, (g + 1) * group)):
                        w = np.float64(weight[row, j])
                        value = 0.0
                        if s != 0.0:
                            u = w / s + o
                            cell = cell_of(np.float32(u), np.int32(shift), np.int32(floor), np.int32(top))
                            index = first[cell]
                            while u >= thresholds[index]:
                                index += 1
                            value = np.float64(np.float32(s * (levels[index] - o)))
                        total += shares[j] * (w - value) ** 2
                    errors[k, row, g] = total


@exclusive
def weighted_errors(
    weight: Float[np.ndarray, "rows columns"],
    importance: Float[np.ndarray, "slices columns"],
    slice_of: Int[np.ndarray, " rows"],
    group: int,
    scales: Float[np.ndarray, "candidates rows groups"],
    offsets: Float[np.ndarray, "candidates rows groups"],
    grid: Grid,
) -> Float[np.ndarray, "candidates rows groups"]:
    """Return sum_j importance_j (w_j - w_hat_j)^2 of each group under each candidate, float64.

    Args:
        weight: float32.
        importance: float64, at least 0, of each input.
        slice_of: int64, the row of ``importance`` that each row of the weight has.
        group: columns that share a scale.
        scales: float32; one row where all rows share them.
        offsets: float64, same shape.
        grid: gives levels, and thresholds as ``quantize`` uses them.
    """
    rows = len(weight)
    errors = np.empty((len(scales), rows, scales.shape[2]))
    scales = np.ascontiguousarray(scales, dtype=np.float32)
    offsets = np.ascontiguousarray(offsets, dtype=np.float64)
    importance = np.ascontiguousarray(importance, dtype=np.float64)
    slices = np.ascontiguousarray(slice_of, dtype=np.int64)
    _weighted(np.ascontiguousarray(weight), importance, slices, group, scales, offsets, code_table(grid), errors)
    return errors

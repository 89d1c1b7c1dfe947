"""One pass of half-quadratic quantization: round, measure the residual, shrink it, and sum what the next fit needs."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numba import prange

from workbench.grids.grid import Grid
from workbench.kernels.exact import PARTS
from workbench.kernels.runtime import exclusive, kernel
from workbench.kernels.tables import cell_of, code_table


@kernel(parallel=True)
def _pass(weight, group, scale, offset, table, beta, norm, fit_offset, magnitude, loss, above, below):
    first, shift, floor, top, _steps, thresholds, levels = table
    rows, columns = weight.shape
    parts = min(rows, PARTS)
    for part in prange(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if scale.shape[0] == 1 else row
            for g in range(scale.shape[1]):
                s = np.float64(scale[at, g])
                o = offset[at, g]
                size_sum, power_sum, upper, lower = 0.0, 0.0, 0.0, 0.0
                for j in range(g * group, min(columns, (g + 1) * group)):
                    w = np.float64(weight[row, j])
                    level, value = o, 0.0
                    if s != 0.0:
                        u = w / s + o
                        index = first[cell_of(np.float32(u), np.int32(shift), np.int32(floor), np.int32(top))]
                        while u >= thresholds[index]:
                            index += 1
                        level = levels[index]
                        value = s * (level - o)
                    residual = w - value
                    size = abs(residual)
                    shrunk = 0.0
                    if size > 0.0:
                        power = size**norm
                        size_sum += size
                        power_sum += power
                        left = size - power / (size * beta)
                        if left > 0.0:
                            shrunk = left if residual > 0.0 else -left
                    aimed = w - shrunk
                    if fit_offset:
                        upper += level - (aimed / s if s != 0.0 else 0.0)
                        lower += 1.0
                    else:
                        upper += level * aimed
                        lower += level * level
                magnitude[row, g] = size_sum
                loss[row, g] = power_sum
                above[row, g] = upper
                below[row, g] = lower


class Pass(NamedTuple):
    """Sums over each scale group of each row, float64."""

    magnitude: Float[np.ndarray, "rows groups"]
    """sum abs(w - w_hat)."""
    loss: Float[np.ndarray, "rows groups"]
    """sum abs(w - w_hat)^p."""
    above: Float[np.ndarray, "rows groups"]
    """Numerator of the next offset, sum (level - (w - w_e) / s), or of the next scale, sum level (w - w_e)."""
    below: Float[np.ndarray, "rows groups"]
    """Its denominator: how many weights, or sum level^2."""


@exclusive
def half_quadratic_pass(
    weight: Float[np.ndarray, "rows columns"],
    grid: Grid,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    group: int,
    *,
    beta: float,
    norm: float,
    fit_offset: bool,
) -> Pass:
    """Round a weight under some scales and offsets, and return the sums that the next ones follow from.

    w_e = sign(x) max(|x| - |x|^(p-1) / beta, 0) of the residual x is what the weight may keep as error.

    Args:
        weight: float32.
        grid: gives levels and thresholds.
        scale: float64, one row where all rows share it.
        offset: float64, same shape.
        group: columns that share a scale.
        beta: penalty of the splitting, above 0.
        norm: p, above 0 and at most 1.
        fit_offset: whether the sums are for offsets; else for scales.
    """
    shape = (len(weight), scale.shape[1])
    sums = Pass(np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape))
    scale = np.ascontiguousarray(scale, dtype=np.float64)
    offset = np.ascontiguousarray(offset, dtype=np.float64)
    table = code_table(grid)
    _pass(np.ascontiguousarray(weight), group, scale, offset, table, float(beta), float(norm), fit_offset, *sums)
    return sums

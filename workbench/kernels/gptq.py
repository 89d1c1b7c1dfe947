"""Second-order rounding, column by column: GPTQ's inner loop, and cyclic descent on codes under a Gram matrix.

Rows of a weight do not know of each other, so that each thread takes whole rows and runs their columns in order. Levels
are found as in ``encode`` (u = w / s + o in float64, then a table and a comparison or two), and what a level stands for
is rounded to float32 as ``decode`` does, so that errors are those of the weight that is stored.
"""

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

#: Multiply-adds may be fused.
_FUSED = frozenset({"contract"})


@kernel(inline=True)
def _level_of(w, s, o, table):
    """Return the index of the level that a weight encodes to, and the weight it then stands for."""
    first, shift, floor, top, _steps, thresholds, levels = table
    u = w / s + o
    index = first[cell_of(np.float32(u), np.int32(shift), np.int32(floor), np.int32(top))]
    while u >= thresholds[index]:
        index += 1
    return index, np.float64(np.float32(s * (levels[index] - o)))


@kernel(parallel=True, fastmath=_FUSED)
def _round_columns(weight, upper, span, group_of, scale, offset, table, zero, indices, errors):
    start, stop, base = span
    rows = weight.shape[0]
    shared = scale.shape[0] == 1
    parts = min(rows, PARTS)
    for part in prange(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if shared else row
            some = weight[row]
            for j in range(start, stop):
                s = np.float64(scale[at, group_of[j]])
                w = np.float64(some[j])
                index, decoded = zero, 0.0
                if s != 0.0:
                    index, decoded = _level_of(w, s, offset[at, group_of[j]], table)
                indices[row, j] = index
                error = (w - decoded) / upper[j, j]
                errors[row, j - base] = error
                share = some.dtype.type(error)
                for k in range(j + 1, stop):
                    some[k] -= share * upper[j, k]


@kernel(parallel=True, fastmath=_FUSED)
def _descend(decoded, gradient, gram, group_of, scale, offset, table, indices, changes):
    rows, columns = decoded.shape
    shared = scale.shape[0] == 1
    parts = min(rows, PARTS)
    for part in prange(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if shared else row
            slope = gradient[row]
            for j in range(columns):
                s = np.float64(scale[at, group_of[j]])
                curvature = gram[j, j]
                if s == 0.0 or curvature <= 0.0:
                    continue
                now = decoded[row, j]
                index, then = _level_of(now + slope[j] / curvature, s, offset[at, group_of[j]], table)
                move = then - now
                # A move has to pay by more than the rounding of the sums that it was computed from.
                if index == indices[row, j] or move * (2.0 * slope[j] - move * curvature) <= 1e-12 * curvature * s * s:
                    continue
                indices[row, j] = index
                decoded[row, j] = then
                changes[row] += 1
                for k in range(columns):
                    slope[k] -= move * gram[j, k]


@exclusive
def round_columns(
    weight: Float[np.ndarray, "rows columns"],
    upper: Float[np.ndarray, "columns columns"],
    span: tuple[int, int, int],
    group_of: Int[np.ndarray, " columns"],
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    grid: Grid,
    indices: Int[np.ndarray, "rows columns"],
    errors: Float[np.ndarray, "rows width"],
) -> None:
    """Round some columns in order, each row's error passed on to the columns of the span that follow, in place.

    Args:
        weight: float32 or float64, C-contiguous; columns of the span are overwritten by what they were when rounded.
        upper: the upper triangular U with H^-1 = U^T U, of the weight's dtype.
        span: first column, the one after the last, and the column that ``errors`` begins with.
        group_of: int32, the scale group of each column.
        scale: float32, one row where all rows share it.
        offset: float64, same shape.
        grid: gives levels and thresholds.
        indices: takes the level index of each rounded weight.
        errors: of the weight's dtype; takes (w - w_hat) / U_jj, by which later columns are to be moved.
    """
    zero = int(np.argmin(np.abs(grid.levels)))
    _round_columns(weight, upper, span, group_of, scale, offset, code_table(grid), zero, indices, errors)


@exclusive
def descend(
    decoded: Float[np.ndarray, "rows columns"],
    gradient: Float[np.ndarray, "rows columns"],
    gram: Float[np.ndarray, "columns columns"],
    group_of: Int[np.ndarray, " columns"],
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    grid: Grid,
    indices: Int[np.ndarray, "rows columns"],
) -> int:
    """Go once through all columns and give each weight the level that errs least beside all others; in place.

    A weight moves only where (w - w_hat)^T G (w - w_hat) of its row falls, so that the sum never rises. Returns how many
    moved.

    Args:
        decoded: float64, the weights that the codes stand for.
        gradient: float64, (W - W_hat) G; kept up to date.
        gram: float64, G, symmetric.
        group_of: int32, the scale group of each column.
        scale: float32, one row where all rows share it.
        offset: float64, same shape.
        grid: gives levels and thresholds; thresholds midway between levels, for the step to be the best one.
        indices: level index of each weight.
    """
    changes = np.zeros(len(decoded), dtype=np.int64)
    _descend(decoded, gradient, gram, group_of, scale, offset, code_table(grid), indices, changes)
    return int(changes.sum())

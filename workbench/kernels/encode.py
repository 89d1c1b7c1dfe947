"""Weights to level indices and back, for whole blocks of rows, exactly as the definition says.

encode: u = w / s + o,  index = number of thresholds <= u      decode: w_hat = float32(s * (level - o))
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numba import prange

from workbench.grids.grid import Grid
from workbench.kernels.codes import as_codes
from workbench.kernels.exact import BLOCK, PARTS, normalise
from workbench.kernels.runtime import exclusive, kernel
from workbench.kernels.tables import cell_of, code_table


@kernel(parallel=True)
def _encode(codes, group, scale, offset, table, zero, indices):
    first, shift, floor, top, _steps, thresholds, _levels = table
    rows, columns = codes.shape
    shared = scale.shape[0] == 1
    parts = min(rows, PARTS)
    for part in prange(parts):
        weight = np.empty(BLOCK)
        place = np.empty(BLOCK)
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if shared else row
            for g in range(scale.shape[1]):
                s = np.float64(scale[at, g])
                stop = min(columns, (g + 1) * group)
                for begin in range(g * group, stop, BLOCK):
                    count = min(BLOCK, stop - begin)
                    if s == 0.0:
                        indices[row, begin : begin + count] = zero
                        continue
                    normalise(codes[row, begin : begin + count], s, offset[at, g], weight, place)
                    for j in range(count):
                        index = first[cell_of(np.float32(place[j]), np.int32(shift), np.int32(floor), np.int32(top))]
                        while place[j] >= thresholds[index]:
                            index += 1
                        indices[row, begin + j] = index


@kernel(parallel=True)
def _decode(indices, group, scale, offset, levels, decoded):
    rows, columns = indices.shape
    shared = scale.shape[0] == 1
    parts = min(rows, PARTS)
    for part in prange(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if shared else row
            for g in range(scale.shape[1]):
                s = np.float64(scale[at, g])
                o = offset[at, g]
                for j in range(g * group, min(columns, (g + 1) * group)):
                    decoded[row, j] = np.float32(s * (levels[indices[row, j]] - o))


@exclusive
def encode_rows(
    rows: np.ndarray,
    grid: Grid,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    group: int,
) -> Int[np.ndarray, "rows columns"]:
    """Return the index of the level that each weight encodes to: uint8 up to 256 levels, else uint16.

    A group whose scale is 0 gets the level nearest 0.

    Args:
        rows: finite weights (rows, columns) in any floating-point dtype, as stored.
        grid: gives levels and thresholds, at most 65,536 levels.
        scale: float32, one value for each row and group; one row where all rows share it.
        offset: float64, same shape.
        group: columns that share a scale.
    """
    codes = as_codes(rows)
    indices = np.empty(codes.shape, dtype=np.uint8 if len(grid.levels) <= 256 else np.uint16)
    scale = np.ascontiguousarray(scale, dtype=np.float32)
    offset = np.ascontiguousarray(offset, dtype=np.float64)
    zero = int(np.argmin(np.abs(grid.levels)))
    _encode(codes, group, scale, offset, code_table(grid), zero, indices)
    return indices


@exclusive
def decode_rows(
    indices: Int[np.ndarray, "rows columns"],
    grid: Grid,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    group: int,
) -> Float[np.ndarray, "rows columns"]:
    """Return the float32 weights that level indices stand for (arguments as in ``encode_rows``)."""
    indices = np.ascontiguousarray(indices)
    decoded = np.empty(indices.shape, dtype=np.float32)
    scale = np.ascontiguousarray(scale, dtype=np.float32)
    offset = np.ascontiguousarray(offset, dtype=np.float64)
    _decode(indices, group, scale, offset, np.ascontiguousarray(grid.levels), decoded)
    return decoded

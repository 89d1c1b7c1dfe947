"""The exact reconstruction error of stored weights: one parallel pass, nothing written but a few sums.

Two ways, chosen by the number of levels. A few levels: each group's thresholds become exact float32 borders
(``borders.group_borders``) and every weight is compared with all of them, a block of columns at a time, so that the
compiler turns comparing and selecting into vector instructions. Many levels: a table over the leading bits of
float32(u) gives the candidate level, and comparing ``u`` with the thresholds of that one table cell settles it.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numba import prange

from workbench.grids.grid import Grid
from workbench.kernels.borders import both_orders, group_borders
from workbench.kernels.codes import as_codes, bits_of, float_of, value
from workbench.kernels.extrema import extrema_of
from workbench.kernels.runtime import SUMS, exclusive, kernel, take, threads
from workbench.kernels.tables import cell_of, code_table

#: Columns that are worked on at a time: their float32 copies stay in the first-level cache.
BLOCK = 1024

#: Pieces that the rows are dealt out in: enough that a thread that lags does not hold up the rest for long.
PARTS = 64

#: Where a group's scale comes from: given, or its absmax times a clip, positive or (``signed`` grids) with the sign
#: that maps the weight of largest magnitude onto the level -1.
GIVEN, ABSMAX, SIGNED = 0, 1, 2

#: Up to this many levels every border is compared.
FEW_LEVELS = 48


@kernel(fastmath=SUMS)
def _compare(weight, decoded):
    """Return error, weight and decoded energy, and the largest error of some weights (float32 or float64)."""
    error = 0.0
    energy = 0.0
    power = 0.0
    # The magnitude bits of a float64 grow with it; as integers their maximum is a vector instruction.
    largest = np.int64(0)
    for j in range(weight.shape[0]):
        w = np.float64(weight[j])
        v = np.float64(decoded[j])
        difference = w - v
        error += difference * difference
        energy += w * w
        power += v * v
        largest = max(largest, bits_of(difference) & np.int64(0x7FFFFFFFFFFFFFFF))
    return error, energy, power, float_of(largest)


@kernel()
def _decode_few(codes, borders, values, weight, decoded):
    """Decode some weights by comparing each with every border, four borders in one sweep."""
    b0, b1, b2, b3 = borders[0], borders[1], borders[2], borders[3]
    v0, v1, v2, v3, v4 = values[0], values[1], values[2], values[3], values[4]
    for j in range(codes.shape[0]):
        w = value(codes[j])
        v = v1 if w >= b0 else v0
        v = v2 if w >= b1 else v
        v = v3 if w >= b2 else v
        v = v4 if w >= b3 else v
        weight[j] = w
        decoded[j] = v
    for i in range(4, borders.shape[0], 4):
        b0, b1, b2, b3 = borders[i], borders[i + 1], borders[i + 2], borders[i + 3]
        v1, v2, v3, v4 = values[i + 1], values[i + 2], values[i + 3], values[i + 4]
        for j in range(codes.shape[0]):
            w = weight[j]
            v = decoded[j]
            v = v1 if w >= b0 else v
            v = v2 if w >= b1 else v
            v = v3 if w >= b2 else v
            v = v4 if w >= b3 else v
            decoded[j] = v


@kernel(inline=True)
def _scan_few(codes, borders, values, weight, decoded):
    """Return error, weight and decoded energy, and the largest error of one group's weights, a few levels."""
    error, energy, power, largest = 0.0, 0.0, 0.0, 0.0
    for first in range(0, codes.shape[0], BLOCK):
        count = min(BLOCK, codes.shape[0] - first)
        some, there = weight[:count], decoded[:count]
        _decode_few(codes[first : first + count], borders, values, some, there)
        found = _compare(some, there)
        error += found[0]
        energy += found[1]
        power += found[2]
        largest = max(largest, found[3])
    return error, energy, power, largest


@kernel(parallel=True)
def _few_levels(codes, group, rule, scale, offset, grid, sums, counter, workers):
    thresholds, levels = grid
    rows, columns = codes.shape
    shared = scale.shape[0] == 1
    parts = min(rows, PARTS)
    for _ in prange(workers):
        weight = np.empty(BLOCK, dtype=np.float32)
        decoded = np.empty(BLOCK, dtype=np.float32)
        borders = np.empty(thresholds.shape[1], dtype=np.float32)
        values = np.empty(levels.shape[1], dtype=np.float32)
        part = take(counter)
        while part < parts:
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                at = 0 if shared else row
                for g in range(scale.shape[1]):
                    some = codes[row, g * group : min(columns, (g + 1) * group)]
                    s = _scale_of(some, rule, scale, at, g)
                    if np.isfinite(s):
                        group_borders(thresholds, levels, s, offset[at, g], borders, values)
                        found = _scan_few(some, borders, values, weight, decoded)
                        _add(sums[row], found, s)
            part = take(counter)


@kernel(inline=True)
def _scale_of(codes, rule, scale, row, g):
    """Return a group's scale: the one given, or (and then entered) the clip times its absmax, float32.

    ``rule`` is (kind, clip); a group with NaN or infinite weights gets a scale that is not finite.
    """
    kind, clip = rule
    if kind == GIVEN:
        return scale[row, g]
    low, high, peak = extrema_of(codes)
    reach = clip * max(-np.float64(low), np.float64(high))
    if not (np.isfinite(low) and np.isfinite(high)):
        reach = np.inf
    if kind == SIGNED and peak > 0.0:
        reach = -reach
    scale[row, g] = np.float32(reach)
    return scale[row, g]


@kernel(inline=True)
def _add(total, found, scale):
    """Add one group's error, weight energy, decoded energy, largest error, and largest error over the scale."""
    total[0] += found[0]
    total[1] += found[1]
    total[2] += found[2]
    total[3] = max(total[3], found[3])
    if scale != np.float32(0.0):
        total[4] = max(total[4], found[3] / abs(np.float64(scale)))


@kernel()
def _decode_many(codes, scale, offset, table, weight, place, cell):
    """Decode some weights by the table: each is replaced in ``place`` by the value its level stands for."""
    first, shift, floor, top, steps, thresholds, levels = table
    normalise(codes, scale, offset, weight, place)
    shift, floor, top = np.int32(shift), np.int32(floor), np.int32(top)
    for j in range(place.shape[0]):
        cell[j] = cell_of(np.float32(place[j]), shift, floor, top)
    if steps == 1:
        for j in range(place.shape[0]):
            index = np.uint32(first[np.uint32(cell[j])])
            index += np.uint32(place[j] >= thresholds[index])
            place[j] = levels[index]
    else:
        for j in range(place.shape[0]):
            index = np.uint32(first[np.uint32(cell[j])])
            while place[j] >= thresholds[index]:
                index += np.uint32(1)
            place[j] = levels[index]
    for j in range(place.shape[0]):
        place[j] = np.float64(np.float32(scale * (place[j] - offset)))


@kernel(inline=True)
def _scan_many(codes, scale, offset, table, weight, place, cell):
    """Return error, weight and decoded energy, and the largest error of one group's weights, any number of levels."""
    error, energy, power, largest = 0.0, 0.0, 0.0, 0.0
    for begin in range(0, codes.shape[0], BLOCK):
        count = min(BLOCK, codes.shape[0] - begin)
        some, there = weight[:count], place[:count]
        _decode_many(codes[begin : begin + count], scale, offset, table, some, there, cell[:count])
        found = _compare(some, there)
        error += found[0]
        energy += found[1]
        power += found[2]
        largest = max(largest, found[3])
    return error, energy, power, largest


@kernel()
def normalise(codes, scale, offset, weight, place):
    """Fill float64 weights and their places on the grid's axis, u = w / s + o, as the definition has it."""
    if scale == 0.0:
        for j in range(codes.shape[0]):
            weight[j] = np.float64(value(codes[j]))
            place[j] = 0.0
    elif offset == 0.0:
        for j in range(codes.shape[0]):
            w = np.float64(value(codes[j]))
            weight[j] = w
            place[j] = w / scale
    else:
        for j in range(codes.shape[0]):
            w = np.float64(value(codes[j]))
            weight[j] = w
            place[j] = w / scale + offset


@kernel(parallel=True)
def _many_levels(codes, group, rule, scale, offset, grid, sums, counter, workers):
    rows, columns = codes.shape
    shared = scale.shape[0] == 1
    parts = min(rows, PARTS)
    for _ in prange(workers):
        weight = np.empty(BLOCK)
        place = np.empty(BLOCK)
        cell = np.empty(BLOCK, dtype=np.int32)
        part = take(counter)
        while part < parts:
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                at = 0 if shared else row
                for g in range(scale.shape[1]):
                    some = codes[row, g * group : min(columns, (g + 1) * group)]
                    s = _scale_of(some, rule, scale, at, g)
                    if np.isfinite(s):
                        found = _scan_many(some, np.float64(s), offset[at, g], grid, weight, place, cell)
                        _add(sums[row], found, s)
            part = take(counter)


@kernel(parallel=True)
def _few_candidates(codes, group, scales, offsets, grid, errors, counter, workers):
    thresholds, levels = grid
    rows, columns = codes.shape
    parts = min(rows, PARTS)
    for _ in prange(workers):
        weight = np.empty(BLOCK, dtype=np.float32)
        decoded = np.empty(BLOCK, dtype=np.float32)
        borders = np.empty(thresholds.shape[1], dtype=np.float32)
        values = np.empty(levels.shape[1], dtype=np.float32)
        part = take(counter)
        while part < parts:
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                at = 0 if scales.shape[1] == 1 else row
                for g in range(scales.shape[2]):
                    some = codes[row, g * group : min(columns, (g + 1) * group)]
                    for k in range(scales.shape[0]):
                        group_borders(thresholds, levels, scales[k, at, g], offsets[k, at, g], borders, values)
                        errors[k, row, g] = _scan_few(some, borders, values, weight, decoded)[0]
            part = take(counter)


@kernel(parallel=True)
def _many_candidates(codes, group, scales, offsets, grid, errors, counter, workers):
    rows, columns = codes.shape
    parts = min(rows, PARTS)
    for _ in prange(workers):
        weight = np.empty(BLOCK)
        place = np.empty(BLOCK)
        cell = np.empty(BLOCK, dtype=np.int32)
        part = take(counter)
        while part < parts:
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                at = 0 if scales.shape[1] == 1 else row
                for g in range(scales.shape[2]):
                    some = codes[row, g * group : min(columns, (g + 1) * group)]
                    for k in range(scales.shape[0]):
                        s = np.float64(scales[k, at, g])
                        errors[k, row, g] = _scan_many(some, s, offsets[k, at, g], grid, weight, place, cell)[0]
            part = take(counter)


class RowSums(NamedTuple):
    """Float64 sums over each row, exact up to the order of summation."""

    error: Float[np.ndarray, " rows"]
    """sum (w - w_hat)^2."""
    weight: Float[np.ndarray, " rows"]
    """sum w^2."""
    decoded: Float[np.ndarray, " rows"]
    """sum w_hat^2."""
    largest: Float[np.ndarray, " rows"]
    """Largest abs(w - w_hat)."""
    steps: Float[np.ndarray, " rows"]
    """Largest abs(w - w_hat) / abs(scale of its group); groups with scale 0 aside."""


@exclusive
def error_sums(
    rows: np.ndarray,
    grid: Grid,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    group: int,
) -> RowSums:
    """Compare every weight of some rows with the level it encodes to.

    Encoding and decoding are those of ``quantize``: u = w / s + o in float64, the grid's thresholds, and
    w_hat = float32(s * (level - o)).

    Args:
        rows: finite weights (rows, columns) in any floating-point dtype, as stored.
        grid: gives levels and thresholds.
        scale: float32, one value for each row and group; one row where all rows share it.
        offset: float64, same shape.
        group: columns that share a scale.
    """
    sums = _sums(rows, grid, (GIVEN, 1.0), _ready(scale, np.float32), _ready(offset, np.float64), group)
    return RowSums(*sums.T)


@exclusive
def absmax_error_sums(rows: np.ndarray, grid: Grid, clip: float, group: int) -> RowSums | None:
    """Find every group's scale and compare its weights in the same pass: float32(clip * max|w|) of each group.

    Args:
        rows: weights (rows, columns) in any floating-point dtype, as stored.
        grid: of the normalization ``absmax`` or ``signed``.
        clip: fraction of the absmax to keep, above 0.
        group: columns that share a scale, within each row.

    Returns:
        The sums, or None where a group's scale is not finite (NaN, infinite or overflowing weights).
    """
    shape = (rows.shape[0], -(-rows.shape[1] // group))
    scale, offset = np.zeros(shape, dtype=np.float32), np.zeros(shape)
    kind = SIGNED if grid.normalization == "signed" else ABSMAX
    sums = _sums(rows, grid, (kind, float(clip)), scale, offset, group)
    return RowSums(*sums.T) if np.isfinite(scale).all() else None


@exclusive
def candidate_errors(
    rows: np.ndarray,
    grid: Grid,
    scales: Float[np.ndarray, "candidates rows groups"],
    offsets: Float[np.ndarray, "candidates rows groups"],
    group: int,
) -> Float[np.ndarray, "candidates rows groups"]:
    """Return sum (w - w_hat)^2 of every group of every row under each of several scales.

    Args:
        rows: finite weights (rows, columns) in any floating-point dtype, as stored.
        grid: gives levels and thresholds.
        scales: float32, for each candidate one value for each row and group; one row where all rows share it.
        offsets: float64, same shape.
        group: columns that share a scale.
    """
    codes = as_codes(rows)
    errors = np.empty((len(scales), codes.shape[0], scales.shape[2]))
    counter = np.zeros(1, dtype=np.int64)
    scales, offsets = _ready(scales, np.float32), _ready(offsets, np.float64)
    if len(grid.levels) <= FEW_LEVELS and codes.dtype != np.float64:
        both = both_orders(grid.thresholds, grid.levels)
        _few_candidates(codes, group, scales, offsets, both, errors, counter, threads())
    else:
        _many_candidates(codes, group, scales, offsets, code_table(grid), errors, counter, threads())
    return errors


def _ready(array: np.ndarray, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=dtype)


def _sums(
    rows: np.ndarray,
    grid: Grid,
    rule: tuple[int, float],
    scale: np.ndarray,
    offset: np.ndarray,
    group: int,
) -> Float[np.ndarray, "rows 5"]:
    """Run the loop that suits the grid."""
    codes = as_codes(rows)
    sums = np.zeros((codes.shape[0], 5))
    counter = np.zeros(1, dtype=np.int64)
    if len(grid.levels) <= FEW_LEVELS and codes.dtype != np.float64:
        both = both_orders(grid.thresholds, grid.levels)
        _few_levels(codes, group, rule, scale, offset, both, sums, counter, threads())
    else:
        _many_levels(codes, group, rule, scale, offset, code_table(grid), sums, counter, threads())
    return sums

"""One pass of half-quadratic quantization: round, measure the residual, shrink it, and sum what the next fit needs."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numba import prange

from workbench.grids.grid import Grid
from workbench.kernels.codes import bits_of, float_of
from workbench.kernels.exact import PARTS
from workbench.kernels.runtime import SUMS, exclusive, kernel
from workbench.kernels.tables import cell_of, code_table

#: What a residual of 0 is divided as.
TINY = 1e-300
#: Smallest bits of a float32 that is not subnormal.
_LEAST = np.int32(0x00800000)
_LN2 = 0.6931471805599453


@kernel(fastmath=SUMS, inline=True)
def _power(size, norm):
    """Return size^norm to 2e-7 of itself, of a size from 0 (0 where a float32 is subnormal) to 2^127; no branches, no look-ups.

    2^(norm log2 size), the logarithm from 2 artanh((m - 1) / (m + 1)) to its ninth power, the exponential by its series to
    the sixth, so that the compiler can do many at once.
    """
    pattern = bits_of(np.float32(size))
    mantissa = np.float64(float_of(np.int32((pattern & np.int32(0x007FFFFF)) | np.int32(0x3F800000))))
    folded = mantissa > 1.4142135623730951
    mantissa = 0.5 * mantissa if folded else mantissa
    whole = np.float64((pattern >> np.int32(23)) - np.int32(127)) + (1.0 if folded else 0.0)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    q = s * s
    series = s * (1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0)))))
    y = norm * (whole + (2.0 / _LN2) * series)
    n = min(np.floor(y + 0.5), 127.0)
    r = _LN2 * (y - n)
    curve = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))
    curve = 1.0 + r * (1.0 + r * (1.0 / 2.0 + r * (1.0 / 6.0 + r * curve)))
    found = curve * np.float64(float_of(np.int32((np.int32(n) + np.int32(127)) << np.int32(23))))
    return found if pattern >= _LEAST else 0.0


@kernel(fastmath=SUMS, inline=True)
def _shrink(residual, size, power, beta):
    """Return sign(x) max(|x| - |x|^(p-1) / beta, 0)."""
    left = max(size - power / (max(size, TINY) * beta), 0.0)
    return left if residual > 0.0 else -left


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
                    power = _power(size, norm)
                    size_sum += size
                    power_sum += power
                    aimed = w - _shrink(residual, size, power, beta)
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


@kernel(parallel=True, fastmath=SUMS)
def _equal_steps_pass(
    weight, group, scale, offset, lowest, gap, last, beta, norm, fit_offset, magnitude, loss, above, below
):
    """The same for ``last`` equal gaps from the lowest level up: no look-ups of levels."""
    rows, columns = weight.shape
    parts = min(rows, PARTS)
    for part in prange(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if scale.shape[0] == 1 else row
            for g in range(scale.shape[1]):
                s = np.float64(scale[at, g])
                o = offset[at, g]
                inverse = 1.0 / s if s != 0.0 else 0.0
                size_sum, power_sum, upper, lower = 0.0, 0.0, 0.0, 0.0
                run = weight[row, g * group : min(columns, (g + 1) * group)]
                for j in range(len(run)):  # from 0: no index can be negative, so that many are done at once
                    w = np.float64(run[j])
                    code = min(max(np.floor((w * inverse + o - lowest) / gap + 0.5), 0.0), last)
                    level = lowest + code * gap if s != 0.0 else o
                    residual = w - s * (level - o)
                    size = abs(residual)
                    power = _power(size, norm)
                    size_sum += size
                    power_sum += power
                    aimed = w - _shrink(residual, size, power, beta)
                    upper += level - aimed * inverse if fit_offset else level * aimed
                    lower += 1.0 if fit_offset else level * level
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
    weight, beta, norm = np.ascontiguousarray(weight), float(beta), float(norm)
    levels = grid.levels
    gaps = np.diff(levels)
    if np.ptp(gaps) <= 1e-12:
        steps = (float(levels[0]), float(gaps.mean()), float(len(gaps)))
        _equal_steps_pass(weight, group, scale, offset, *steps, beta, norm, fit_offset, *sums)
    else:
        _pass(weight, group, scale, offset, code_table(grid), beta, norm, fit_offset, *sums)
    return sums

"""One pass of half-quadratic quantization: round, measure the residual, shrink it, and sum what the next fit needs."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numba import prange

from workbench.grids.grid import Grid
from workbench.grids.power import PowerGrid
from workbench.kernels.codes import bits_of
from workbench.kernels.exact import PARTS
from workbench.kernels.runtime import SUMS, exclusive, kernel
from workbench.kernels.tables import cell_of, code_table

#: What a residual of 0 is divided as.
TINY = 1e-300
#: Mantissas are looked up in so many cells with linear interpolation: powers are right to 1 / (8 CELLS^2), 1e-8.
CELLS = 4096


@lru_cache(maxsize=8)
def _power_tables(norm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of two by a float32's exponent bits (0 for zero and subnormal numbers), and those of mantissas."""
    exponents = np.exp2(norm * (np.arange(256) - 127.0))
    exponents[0] = 0.0
    return exponents, (1.0 + np.arange(CELLS + 1) / CELLS) ** norm


@kernel(inline=True)
def _power(size, exponents, mantissas):
    """Return size^p, of a size from 0 up."""
    pattern = bits_of(np.float32(size))
    cell = (pattern >> np.int32(11)) & np.int32(CELLS - 1)
    low = mantissas[cell]
    between = np.float64(pattern & np.int32(2047)) * (1.0 / 2048.0)
    return exponents[pattern >> np.int32(23)] * (low + between * (mantissas[cell + 1] - low))


@kernel(inline=True)
def _shrink(residual, size, power, beta):
    """Return sign(x) max(|x| - |x|^(p-1) / beta, 0)."""
    left = max(size - power / (max(size, TINY) * beta), 0.0)
    return left if residual > 0.0 else -left


@kernel(parallel=True)
def _pass(weight, group, scale, offset, table, beta, powers, fit_offset, magnitude, loss, above, below):
    first, shift, floor, top, _steps, thresholds, levels = table
    exponents, mantissas = powers
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
                    power = _power(size, exponents, mantissas)
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
def _equal_steps_pass(weight, group, scale, offset, last, beta, powers, magnitude, loss, above, below):
    """The same for ``last`` equal steps from 0 to 1 behind an offset that is fitted: no look-ups, so that it is vectorised."""
    exponents, mantissas = powers
    rows, columns = weight.shape
    parts = min(rows, PARTS)
    for part in prange(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if scale.shape[0] == 1 else row
            for g in range(scale.shape[1]):
                s = np.float64(scale[at, g])
                o = offset[at, g]
                inverse = 1.0 / s if s != 0.0 else 0.0
                size_sum, power_sum, upper = 0.0, 0.0, 0.0
                stop = min(columns, (g + 1) * group)
                for j in range(g * group, stop):
                    w = np.float64(weight[row, j])
                    code = min(max(np.floor((w * inverse + o) * last + 0.5), 0.0), last)
                    level = code / last if s != 0.0 else o
                    residual = w - s * (level - o)
                    size = abs(residual)
                    power = _power(size, exponents, mantissas)
                    size_sum += size
                    power_sum += power
                    upper += level - (w - _shrink(residual, size, power, beta)) * inverse
                magnitude[row, g] = size_sum
                loss[row, g] = power_sum
                above[row, g] = upper
                below[row, g] = stop - g * group


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
    weight, beta, powers = np.ascontiguousarray(weight), float(beta), _power_tables(float(norm))
    if fit_offset and isinstance(grid, PowerGrid) and grid.shifted and grid.exponent == 1.0:
        last = float(len(grid.levels) - 1)
        _equal_steps_pass(weight, group, scale, offset, last, beta, powers, *sums)
    else:
        _pass(weight, group, scale, offset, code_table(grid), beta, powers, fit_offset, *sums)
    return sums

"""A grid's thresholds on one group's own axis: the exact float32 weights at which its level changes.

Encoding is defined in float64: ``u = w / s + o``, compared with the grid's thresholds. For one group, ``u`` moves
monotonically with ``w``, so every threshold has a smallest float32 weight on its far side. With those borders known,
a plain float32 comparison of the stored weight gives exactly the float64 answer, sixteen lanes at a time.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

import numpy as np

from workbench.kernels.codes import bits_of, float_of
from workbench.kernels.runtime import kernel

#: A border nearer than this (relative) to its float64 estimate is settled by the definition itself: the estimate
#: carries at most three roundings of 2^-53.
_DOUBT = 8e-16


@kernel(inline=True)
def next_above(number):
    """Return the next larger float32 (both zeros count as one)."""
    pattern = bits_of(number)
    if number == np.float32(0.0):
        return float_of(np.int32(1))
    if pattern >= 0:
        return float_of(np.int32(pattern + 1))
    return float_of(np.int32(pattern - 1))


@kernel(inline=True)
def next_below(number):
    """Return the next smaller float32 (both zeros count as one)."""
    return -next_above(-number)


@kernel(inline=True)
def _beyond(weight, scale, offset, threshold):
    """Say whether a weight lies on the upper side (for a negative scale: the lower side of ``u``) of a threshold."""
    u = np.float64(weight) / scale + offset
    return u >= threshold if scale > 0.0 else u < threshold


@kernel(inline=True)
def border(threshold, scale, offset):
    """Return the smallest float32 weight beyond a threshold, plus infinity when there is none.

    Args:
        threshold: on the grid's axis, float64.
        scale: the group's scale as float64, positive or negative, not 0.
        offset: the group's offset.
    """
    estimate = (threshold - offset) * scale
    if not abs(estimate) < 3.4028235e38:
        return np.float32(np.inf) if estimate > 0.0 else np.float32(-np.inf)
    nearest = np.float32(estimate)
    gap = np.float64(nearest) - estimate
    doubt = _DOUBT * (abs(threshold) + abs(offset)) * abs(scale)
    if gap > doubt:
        return nearest
    if gap < -doubt:
        return next_above(nearest)
    while _beyond(next_below(nearest), scale, offset, threshold):
        nearest = next_below(nearest)
    while not _beyond(nearest, scale, offset, threshold):
        nearest = next_above(nearest)
    return nearest


@kernel()
def group_borders(thresholds, levels, scale, offset, borders, values):
    """Fill one group's borders and decoded values, both in ascending order of the weight.

    Args:
        thresholds: the grid's, float64, ascending.
        levels: the grid's, float64, one more.
        scale: float32; a group with scale 0 decodes to zeros.
        offset: float64.
        borders: float32, filled; entries beyond the thresholds become plus infinity.
        values: float32, filled with s * (level - o), the last one repeated to the end.
    """
    count = thresholds.shape[0]
    wide = np.float64(scale)
    if wide == 0.0:
        borders[:] = np.float32(np.inf)
        values[:] = np.float32(0.0)
        return
    if wide > 0.0:
        for i in range(count):
            borders[i] = border(thresholds[i], wide, offset)
        for i in range(count + 1):
            values[i] = np.float32(wide * (levels[i] - offset))
    else:
        for i in range(count):
            borders[i] = border(thresholds[count - 1 - i], wide, offset)
        for i in range(count + 1):
            values[i] = np.float32(wide * (levels[count - i] - offset))
    for i in range(count, borders.shape[0]):
        borders[i] = np.float32(np.inf)
    for i in range(count + 1, values.shape[0]):
        values[i] = values[count]

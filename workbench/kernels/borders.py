"""A grid's thresholds on one group's own axis: the exact float32 weights at which its level changes.

Encoding is defined in float64: ``u = w / s + o``, compared with the grid's thresholds. For one group, ``u`` moves
monotonically with ``w``, so every threshold has a smallest float32 weight on its far side. With those borders known,
a plain float32 comparison of the stored weight gives exactly the float64 answer, sixteen lanes at a time.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from workbench.kernels.codes import bits_of, code_of_rank, float_of, rank
from workbench.kernels.runtime import kernel

#: A border nearer than this (relative) to its float64 estimate is settled by the definition itself: the estimate and
#: ``u`` carry at most two roundings of 2^-53 each.
_DOUBT = 1e-15


@kernel(inline=True)
def next_above(number):
    """Return the next larger float32; from either zero, the smallest one above it."""
    pattern = bits_of(number)
    up = pattern + np.int32(1) if pattern >= np.int32(0) else pattern - np.int32(1)
    return float_of(np.int32(1 if number == np.float32(0.0) else up))


@kernel(inline=True)
def next_below(number):
    """Return the next smaller float32; from either zero, the largest one below it."""
    return -next_above(-number)


@kernel()
def _settle(threshold, scale, offset):
    """Find a border by bisection between floats that are certainly before and certainly beyond the threshold."""
    estimate = (threshold - offset) * scale
    doubt = 4.0 * _DOUBT * (abs(threshold) + abs(offset)) * abs(scale)
    before = np.int64(rank(next_below(np.float32(estimate - doubt))))
    beyond = np.int64(rank(next_above(np.float32(estimate + doubt))))
    while beyond - before > 1:
        middle = (before + beyond) >> 1
        u = np.float64(code_of_rank(np.int32(middle), np.float32(0.0))) / scale + offset
        if (u >= threshold) == (scale > 0.0):
            beyond = middle
        else:
            before = middle
    return code_of_rank(np.int32(beyond), np.float32(0.0))


@kernel()
def _fill_borders(thresholds, scale, offset, borders):
    """Fill borders for thresholds in ascending order of the weight; branch-free, so that it vectorizes."""
    reach = _DOUBT * abs(scale)
    doubts = 0
    for i in range(thresholds.shape[0]):
        estimate = (thresholds[i] - offset) * scale
        nearest = np.float32(estimate)
        gap = np.float64(nearest) - estimate
        borders[i] = nearest if gap > 0.0 else next_above(nearest)
        doubts += np.int64(not abs(gap) > reach * (abs(thresholds[i]) + abs(offset)))
    if doubts == 0:
        return
    if offset == 0.0:
        # The neighbours of the nearest float are far outside the doubt; only it has to be tried.
        for i in range(thresholds.shape[0]):
            estimate = thresholds[i] * scale
            nearest = np.float32(estimate)
            doubtful = not abs(np.float64(nearest) - estimate) > reach * abs(thresholds[i])
            beyond = (np.float64(nearest) / scale >= thresholds[i]) == (scale > 0.0)
            tried = nearest if beyond else next_above(nearest)
            borders[i] = tried if doubtful else borders[i]
    else:
        for i in range(thresholds.shape[0]):
            estimate = (thresholds[i] - offset) * scale
            gap = np.float64(np.float32(estimate)) - estimate
            if not abs(gap) > reach * (abs(thresholds[i]) + abs(offset)):
                borders[i] = _settle(thresholds[i], scale, offset)


@kernel()
def group_borders(thresholds, levels, scale, offset, borders, values):
    """Fill one group's borders and decoded values, both in ascending order of the weight.

    Args:
        thresholds: from ``both_orders``.
        levels: from ``both_orders``.
        scale: float32; a group with scale 0 decodes to zeros.
        offset: float64.
        borders: float32, filled; plus infinity for the padding.
        values: float32, filled with s * (level - o).
    """
    wide = np.float64(scale)
    if wide == 0.0:
        borders[:] = np.float32(np.inf)
        values[:] = np.float32(0.0)
        return
    order = 0 if wide > 0.0 else 1
    _fill_borders(thresholds[order], wide, offset, borders)
    some = levels[order]
    for i in range(some.shape[0]):
        values[i] = np.float32(wide * (some[i] - offset))


def both_orders(
    thresholds: Float[np.ndarray, " levels-1"], levels: Float[np.ndarray, " levels"]
) -> tuple[Float[np.ndarray, "2 borders"], Float[np.ndarray, "2 values"]]:
    """Return thresholds and levels in ascending and, for negative scales, in descending order, two rows each.

    Padded to whole vectors: thresholds with one that no weight reaches, levels with the last one.
    """
    count = len(thresholds)
    padded = np.empty((2, -(-count // 8) * 8))
    padded[0, count:], padded[1, count:] = 1e300, -1e300
    padded[0, :count], padded[1, :count] = thresholds, thresholds[::-1]
    both = np.empty((2, padded.shape[1] + 8))
    both[0, : count + 1], both[1, : count + 1] = levels, levels[::-1]
    both[0, count + 1 :], both[1, count + 1 :] = levels[-1], levels[0]
    return padded, both

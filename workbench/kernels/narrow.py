"""Dot products in a simulated accumulator narrower than the machine's: every single addition wraps or saturates."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel


@kernel(parallel=True)
def _narrow_dot(left, right, left_zero, right_zero, start, bits, saturate, out, events, widest):
    rows, depth = left.shape
    columns = right.shape[0]
    high = (np.int64(1) << (bits - 1)) - 1
    low = -high - 1
    span = np.int64(1) << bits
    for row in prange(rows):
        happened, largest, smallest = 0, np.int64(0), np.int64(0)
        for column in range(columns):
            total = np.int64(start[column])
            if total > high or total < low:
                happened += 1
                total = (min(max(total, low), high)) if saturate else ((total - low) % span) + low
            zero = np.int64(right_zero[0 if right_zero.shape[0] == 1 else column])
            for k in range(depth):
                total += (np.int64(left[row, k]) - left_zero) * (np.int64(right[column, k]) - zero)
                if total > high or total < low:
                    happened += 1
                    total = (min(max(total, low), high)) if saturate else ((total - low) % span) + low
                largest, smallest = max(largest, total), min(smallest, total)
            out[row, column] = total
        events[row] = happened
        widest[row, 0], widest[row, 1] = smallest, largest


@exclusive
def narrow_dot(
    left: np.ndarray,
    right: np.ndarray,
    left_zero: int,
    right_zero: np.ndarray,
    start: np.ndarray,
    bits: int,
    *,
    saturate: bool,
) -> tuple[np.ndarray, int, int, int]:
    """Return int64 sums of ``(left - left_zero) * (right - right_zero)``, the overflow events, and the extreme sums.

    Args:
        left: integers (rows, depth).
        right: integers (columns, depth).
        left_zero: zero point of the left side.
        right_zero: one, or one per column.
        start: int64 (columns,): the bias, added first.
        bits: 2 to 62: width of the accumulator, two's complement.
        saturate: clamp after each addition; else wrap.

    Returns:
        sums (rows, columns); how many additions left the accumulator; the smallest and the largest partial sum kept.
    """
    out = np.empty((left.shape[0], right.shape[0]), dtype=np.int64)
    events = np.zeros(left.shape[0], dtype=np.int64)
    widest = np.zeros((max(left.shape[0], 1), 2), dtype=np.int64)
    _narrow_dot(left, right, left_zero, right_zero, start, bits, saturate, out, events, widest)
    return out, int(events.sum()), int(widest[:, 0].min()), int(widest[:, 1].max())

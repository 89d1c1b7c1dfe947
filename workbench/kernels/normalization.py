"""LayerNorm and RMSNorm over rows of integer codes: exact sums, an integer root, one rounding to output steps."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.roots import bit_length
from workbench.kernels.runtime import exclusive, kernel

#: Intervals of the table of reciprocal roots on [2**60, 2**62): each is 2**51 wide.
INTERVALS = 1536


@kernel(inline=True)
def _reciprocal_root(value, table):
    """Return round(2**61 / sqrt(value)) for value in [2**60, 2**62): by Newton, or by the table where there is one."""
    if table.shape[0]:
        place = (value - (np.int64(1) << 60)) >> 32
        base = table[place >> 19]
        return base + (((table[(place >> 19) + 1] - base) * (place & ((1 << 19) - 1)) + (1 << 18)) >> 19)
    root = np.int64(1) << 31
    while True:
        following = (root + value // root) >> 1
        if following >= root:
            break
        root = following
    return ((np.int64(1) << 61) + (root >> 1)) // root


@kernel(parallel=True)
def _normalize(
    codes,
    zero,
    centred,
    epsilon,
    fraction,
    places,
    table,
    gain,
    offset,
    shift,
    zero_point,
    low,
    high,
    floor,
    ceiling,
    out,
    left,
):
    rows, depth = codes.shape
    half = np.int64(1) << (shift - 1)
    one_gain, one_offset = gain.shape[0] == 1, offset.shape[0] == 1
    for row in prange(rows):
        total, squares = np.int64(0), np.int64(0)
        for column in range(depth):
            value = np.int64(codes[row, column]) - zero
            total += value
            squares += value * value
        if not centred:
            total = np.int64(0)
        variance = depth * squares - total * total
        reciprocal, down = np.int64(0), np.int64(1)
        # Without variance every distance is 0, whatever epsilon is.
        if variance > 0:
            spread = (variance << fraction) + epsilon
            lift = (62 - bit_length(spread)) & ~1
            reciprocal = _reciprocal_root(spread << lift, table)
            down = 61 - places - ((lift + fraction) >> 1)
        rounding = np.int64(1) << (down - 1)
        saturated = 0
        for column in range(depth):
            distance = depth * (np.int64(codes[row, column]) - zero) - total
            normal = (distance * reciprocal + rounding) >> down
            value = normal * gain[0 if one_gain else column] + offset[0 if one_offset else column]
            code = ((value + half) >> shift) + zero_point
            saturated += code < floor or code > ceiling
            out[row, column] = min(max(code, low), high)
        left[row] = saturated


@exclusive
def normalize_rows(
    codes: np.ndarray,
    zero: int,
    epsilon: int,
    fraction: int,
    places: int,
    table: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    shift: int,
    zero_point: int,
    low: int,
    high: int,
    dtype: np.dtype,
    *,
    centred: bool,
) -> tuple[np.ndarray, int]:
    """Return normalized rows as codes, and how many left the type (an activation's own clamp not counted).

    Args:
        codes: int8, uint8 or int16 (rows, depth).
        zero: the input's zero point.
        epsilon: added to ``(n sum q**2 - (sum q)**2) * 2**fraction``.
        fraction: even, 0 or above.
        places: binary places of a normalized number, up to 30.
        table: int64 (INTERVALS + 1,) of ``2**61 / sqrt``, or (0,) for Newton's iteration.
        gain: int64 (depth,) or (1,), below 2**30 in size.
        offset: int64 (depth,) or (1,), below 2**61 in size.
        shift: right shift of ``normal * gain + offset``, 1 to 62.
        zero_point: added after rounding.
        low: smallest code to give.
        high: largest code.
        dtype: type of the output.
        centred: whether the mean is subtracted (LayerNorm) or not (RMSNorm).
    """
    # int16 holds every code there is: one compiled loop serves all types.
    out = np.empty(codes.shape, dtype=np.int16)
    limits = np.iinfo(dtype)
    left = np.zeros(codes.shape[0], dtype=np.int64)
    _normalize(
        codes.astype(np.int16, copy=False),
        zero,
        centred,
        epsilon,
        fraction,
        places,
        table,
        gain,
        offset,
        shift,
        zero_point,
        low,
        high,
        int(limits.min),
        int(limits.max),
        out,
        left,
    )
    return out.astype(dtype, copy=False), int(left.sum())

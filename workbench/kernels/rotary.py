"""Rotary position embedding on integer codes: two fixed-point products and one rounding per number."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel


@kernel(parallel=True)
def _rotate(
    codes, positions, zero, cosine, sine, step, apart, multiplier, shift, unit, zero_point, low, high, out, left
):
    batches, places, width = codes.shape
    half = np.int64(1) << (shift - 1)
    pairs = cosine.shape[1]
    for batch in prange(batches):
        saturated = 0
        for place in range(places):
            row = positions[place]
            for pair in range(pairs):
                one, other = pair * step, pair * step + apart
                a = np.int64(codes[batch, place, one]) - zero
                b = np.int64(codes[batch, place, other]) - zero
                c, s = np.int64(cosine[row, pair]), np.int64(sine[row, pair])
                first = (((a * c - b * s) * multiplier + half) >> shift) + zero_point
                second = (((b * c + a * s) * multiplier + half) >> shift) + zero_point
                saturated += (first < low or first > high) + (second < low or second > high)
                out[batch, place, one] = min(max(first, low), high)
                out[batch, place, other] = min(max(second, low), high)
            for column in range(2 * pairs, width):
                value = (np.int64(codes[batch, place, column]) - zero) * unit
                code = ((value * multiplier + half) >> shift) + zero_point
                saturated += code < low or code > high
                out[batch, place, column] = min(max(code, low), high)
        left[batch] = saturated


@exclusive
def rotate(
    codes: np.ndarray,
    positions: np.ndarray,
    zero: int,
    cosine: np.ndarray,
    sine: np.ndarray,
    multiplier: int,
    shift: int,
    unit: int,
    zero_point: int,
    dtype: np.dtype,
    *,
    interleaved: bool,
) -> tuple[np.ndarray, int]:
    """Return rotated codes, and how many had to be clamped.

    Args:
        codes: int8, uint8 or int16 (batches, positions, width).
        positions: int64 (positions,): which row of the tables each position takes.
        zero: the input's zero point.
        cosine: int16 or int32 (rows, pairs).
        sine: the same.
        multiplier: from products to output steps, below 2**20 (2**28 where the tables are int16).
        shift: right shift of the product, 1 to 62.
        unit: the tables' 1, which numbers without a partner are multiplied with.
        zero_point: added after rounding.
        dtype: type of the output.
        interleaved: pairs are neighbours (2i, 2i + 1); else (i, i + pairs).
    """
    # int16 holds every code there is: one compiled loop serves all types.
    out = np.empty(codes.shape, dtype=np.int16)
    limits = np.iinfo(dtype)
    left = np.zeros(codes.shape[0], dtype=np.int64)
    step, apart = (2, 1) if interleaved else (1, cosine.shape[1])
    _rotate(
        codes.astype(np.int16, copy=False),
        positions,
        zero,
        cosine,
        sine,
        step,
        apart,
        multiplier,
        shift,
        unit,
        zero_point,
        int(limits.min),
        int(limits.max),
        out,
        left,
    )
    return out.astype(dtype, copy=False), int(left.sum())

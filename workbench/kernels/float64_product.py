"""Integers times a float64 number, rounded as the processor's own multiplication rounds, in integers only."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel

_LOW32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_0, _1 = np.uint64(0), np.uint64(1)


@kernel(inline=True)
def _bit_length(high, low):
    """Return how many bits ``high * 2**64 + low`` has."""
    value, count = (high, 64) if high else (low, 0)
    while value:
        value >>= _1
        count += 1
    return count


@kernel(inline=True)
def _shifted(high, low, places):
    """Return the low 64 bits of ``(high * 2**64 + low) >> places``, places 0 to 127."""
    if places == 0:
        return low
    if places >= 64:
        return high >> np.uint64(places - 64) if places > 64 else high
    return (low >> np.uint64(places)) | (high << np.uint64(64 - places))


@kernel(inline=True)
def _rest_is_zero(high, low, places):
    """Return whether the low ``places`` bits are all 0; places 0 to 127."""
    if places == 0:
        return True
    if places < 64:
        return (low & ((_1 << np.uint64(places)) - _1)) == _0
    return low == _0 and (places == 64 or (high & ((_1 << np.uint64(places - 64)) - _1)) == _0)


@kernel(inline=True)
def _product(value, mantissa, exponent):
    """Return round(float64(value * mantissa * 2**exponent)), half away from zero, at most 2**62."""
    negative = value < 0
    a, m = np.uint64(-value if negative else value), np.uint64(mantissa)
    low_part = (a & _LOW32) * (m & _LOW32)
    middle = (a >> _32) * (m & _LOW32) + (a & _LOW32) * (m >> _32)
    low = low_part + (middle << _32)
    high = (a >> _32) * (m >> _32) + (middle >> _32) + (_1 if low < low_part else _0)
    dropped = max(_bit_length(high, low) - 53, 0)
    kept = _shifted(high, low, dropped)
    if dropped:
        # Half to even, as IEEE 754 multiplies.
        half = _shifted(high, low, dropped - 1) & _1
        if half and (kept & _1 or not _rest_is_zero(high, low, dropped - 1)):
            kept += _1
    places = -(exponent + dropped)
    if places <= 0:
        result = np.int64(1) << 62 if places < -8 else np.int64(kept) << -places
    elif places > 55:
        result = np.int64(0)
    else:
        result = np.int64((kept + (_1 << np.uint64(places - 1))) >> np.uint64(places))
    return -result if negative else result


@kernel(parallel=True)
def _multiply(values, mantissas, exponents, zero_point, low, high, floor, ceiling, out, counts):
    rows, channels = values.shape
    own = 0 if mantissas.shape[0] == 1 else 1
    for row in prange(rows):
        saturated = 0
        for channel in range(channels):
            code = _product(np.int64(values[row, channel]), mantissas[own * channel], exponents[own * channel])
            code += zero_point
            saturated += code < floor or code > ceiling
            out[row, channel] = min(max(code, low), high)
        counts[row] = saturated


@exclusive
def multiply_rows(
    values: np.ndarray,
    mantissas: np.ndarray,
    exponents: np.ndarray,
    zero_point: int,
    low: int,
    high: int,
    dtype: np.dtype,
) -> tuple[np.ndarray, int]:
    """Return ``clamp(round(values * factor) + zero_point, low, high)``, and how many left the type before the clamp.

    The factor is ``mantissa * 2**exponent``; the product is rounded to 53 bits half to even, then to an integer half
    away from zero: what C's ``round(double(value) * factor)`` gives.

    Args:
        values: int32 or int64 (rows, channels), C order, magnitudes below 2**53.
        mantissas: int64, below 2**53, one or one per channel.
        exponents: int64, as many.
        zero_point: added after rounding.
        low: smallest code to give.
        high: largest code.
        dtype: integer type of the codes.
    """
    out = np.empty(values.shape, dtype=dtype)
    counts = np.zeros(len(values), dtype=np.int64)
    limits = np.iinfo(dtype)
    _multiply(values, mantissas, exponents, zero_point, low, high, int(limits.min), int(limits.max), out, counts)
    return out, int(counts.sum())

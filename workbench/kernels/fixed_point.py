"""One accumulator times one factor, as each runtime rounds it: scalar functions that LLVM inlines into the loops.

All take and give int64 and never overflow silently: what a runtime would wrap at 32 bits is wrapped here too.
"""

# Compiled functions: numba infers their types.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import numpy as np

from workbench.kernels.runtime import kernel

#: Rules, as the loops know them (``workbench.integer.requantize`` maps semantics to them).
DOUBLE, SINGLE, WIDE, FLOAT32, RIGHT_SINGLE, RIGHT_DOUBLE, FLOAT64 = range(7)

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1


@kernel(inline=True)
def wrap32(value):
    """Return the low 32 bits as a signed number."""
    return np.int64(np.int32(value))


@kernel(inline=True)
def doubling_high_multiply(a, b):
    """Return round(a * b / 2**31), half away from zero as C's truncating division gives it; saturates at -1 * -1."""
    if a == INT32_MIN and b == INT32_MIN:
        return np.int64(INT32_MAX)
    product = np.int64(a) * np.int64(b)
    if product >= 0:
        return (product + (np.int64(1) << 30)) >> 31
    # C truncates towards zero; the shift would round towards minus infinity.
    return -((-(product + (1 - (np.int64(1) << 30)))) >> 31)


@kernel(inline=True)
def rounding_divide_by_power(value, exponent):
    """Return round(value / 2**exponent), half away from zero; exponent 0 to 31."""
    mask = (np.int64(1) << exponent) - 1
    remainder = value & mask
    threshold = (mask >> 1) + (1 if value < 0 else 0)
    return (value >> exponent) + (1 if remainder > threshold else 0)


@kernel(inline=True)
def rescale_unwrapped(value, multiplier, shift, rule):
    """Return value * factor, rounded by one of the integer rules, before the result is cut to 32 bits."""
    value, multiplier = np.int64(value), np.int64(multiplier)
    shift = np.int64(shift)
    if rule == DOUBLE:
        left = shift if shift > 0 else np.int64(0)
        return rounding_divide_by_power(doubling_high_multiply(wrap32(value << left), multiplier), left - shift)
    if rule == SINGLE:
        total = 31 - shift
    elif rule == WIDE:
        multiplier = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else np.int64(0x7FFF)
        total = 15 - shift
    else:
        total = shift
    half = np.int64(1) << (total - 1)
    if rule == RIGHT_DOUBLE and total > 31:
        half += np.int64(1) << 30 if value >= 0 else -(np.int64(1) << 30)
    return (value * multiplier + half) >> total


@kernel(inline=True)
def rescale(value, multiplier, shift, rule):
    """Return value * factor, rounded by one of the integer rules; TensorFlow Lite's keep 32 bits of the result."""
    rescaled = rescale_unwrapped(value, multiplier, shift, rule)
    return wrap32(rescaled) if rule in (SINGLE, WIDE) else rescaled

"""gemmlowp's fixed-point functions (fixedpoint.h), which TensorFlow Lite Micro computes its activations with.

A number with i integer bits is an int32 code q that stands for q / 2**(31 - i). All take and give int64 that holds
int32 codes; every constant is rounded from its formula here.
"""

# Compiled functions: numba infers their types.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math

import numpy as np

from workbench.kernels.fixed_point import INT32_MAX, INT32_MIN, doubling_high_multiply, rounding_divide_by_power, wrap32
from workbench.kernels.runtime import kernel

_EIGHTH = round(math.exp(-1 / 8) * 2**31)
_THIRD = round(2**31 / 3)
#: exp(-2**k) for k = -2 to 4: the factors of a number's bits from 1/4 upward.
_FACTORS = np.array([round(math.exp(-(2.0**k)) * 2**31) for k in range(-2, 5)], dtype=np.int64)
# The best first guess of 1 / d on [1/2, 1] is 48/17 - 32/17 d.
_GUESS, _SLOPE = round(48 / 17 * 2**29), -round(32 / 17 * 2**29)
_ONE = INT32_MAX


@kernel(inline=True)
def _saturating_shift_left(value, exponent):
    threshold = (np.int64(1) << (31 - exponent)) - 1
    if value > threshold:
        return np.int64(INT32_MAX)
    if value < -threshold:
        return np.int64(INT32_MIN)
    return value << exponent


@kernel(inline=True)
def _exp_near_zero(a):
    x = a + (np.int64(1) << 28)
    x2 = doubling_high_multiply(x, x)
    x3 = doubling_high_multiply(x2, x)
    x4 = doubling_high_multiply(x2, x2)
    inner = doubling_high_multiply(rounding_divide_by_power(x4, 2) + x3, _THIRD) + x2
    return _EIGHTH + doubling_high_multiply(_EIGHTH, x + rounding_divide_by_power(inner, 1))


@kernel(inline=True)
def exp_on_negative_values(a, integer_bits):
    """Return exp(a) with 0 integer bits, for a <= 0 with 1 to 5 integer bits."""
    if a == 0:
        return np.int64(_ONE)
    fractional = 31 - integer_bits
    quarter = np.int64(1) << (fractional - 2)
    low = (a & (quarter - 1)) - quarter
    result = _exp_near_zero(_saturating_shift_left(low, integer_bits))
    remainder = low - a
    for k in range(-2, integer_bits):
        if remainder & (np.int64(1) << (fractional + k)):
            result = doubling_high_multiply(result, _FACTORS[k + 2])
    return result


@kernel(inline=True)
def _rounding_half_sum(a, b):
    total = a + b
    half = total + (1 if total >= 0 else -1)
    # C's division truncates towards zero.
    return half >> 1 if half >= 0 else -((-half) >> 1)


@kernel(inline=True)
def reciprocal(a):
    """Return 2 / (1 + a) with 2 integer bits, for a in [0, 1] with 0 integer bits: three Newton steps."""
    half_denominator = _rounding_half_sum(a, np.int64(_ONE))
    x = _GUESS + doubling_high_multiply(half_denominator, _SLOPE)
    for _ in range(3):
        rest = (np.int64(1) << 29) - doubling_high_multiply(half_denominator, x)
        x = wrap32(x + _saturating_shift_left(doubling_high_multiply(x, rest), 2))
    return x


@kernel(inline=True)
def one_over_one_plus(a):
    """Return 1 / (1 + a) with 0 integer bits, for a in [0, 1] with 0 integer bits."""
    return _saturating_shift_left(reciprocal(a), 1)


@kernel()
def logistic(a, integer_bits):
    """Return 1 / (1 + exp(-a)) with 0 integer bits."""
    if a == 0:
        return np.int64(1) << 30
    positive = one_over_one_plus(exp_on_negative_values(-abs(a), integer_bits))
    return positive if a > 0 else _ONE - positive


@kernel()
def tanh(a, integer_bits):
    """Return the hyperbolic tangent with 0 integer bits."""
    if a == 0:
        return np.int64(0)
    power = exp_on_negative_values(-abs(a), integer_bits + 1)
    result = _saturating_shift_left(reciprocal(power) - (np.int64(1) << 29), 2)
    return result if a > 0 else -result


@kernel()
def logistic_codes(values, integer_bits):
    """Return ``logistic`` of an int64 array."""
    out = np.empty_like(values)
    for index in range(values.size):
        out[index] = logistic(values[index], integer_bits)
    return out


@kernel()
def tanh_codes(values, integer_bits):
    """Return ``tanh`` of an int64 array."""
    out = np.empty_like(values)
    for index in range(values.size):
        out[index] = tanh(values[index], integer_bits)
    return out


@kernel()
def exp_codes(values, integer_bits):
    """Return ``exp_on_negative_values`` of an int64 array."""
    out = np.empty_like(values)
    for index in range(values.size):
        out[index] = exp_on_negative_values(values[index], integer_bits)
    return out

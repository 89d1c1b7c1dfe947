"""Element-wise non-linear functions in integers: look-ups, interpolation, and I-BERT's polynomials.

Every loop counts how many results left the output's type, part by part, so that the counts need no atomics.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel

#: Elements are dealt to the threads in this many pieces.
PARTS = 16

#: What ``polynomial_rows`` computes of the input (``workbench.integer.activations`` maps names to these).
LOGISTIC, TANH, GELU, GELU_TANH, SILU, HARD_SWISH = range(6)

#: Fractional bits of every polynomial's argument.
ARGUMENT_BITS = 14
#: Arguments beyond this real number are clamped: exp(-32) is 0 at every width used here.
ARGUMENT_LIMIT = np.int64(32) << ARGUMENT_BITS
#: Fractional bits of a factor between 0 and 1 (or -1 and 1) that a function multiplies its input with.
FACTOR_BITS = 22


def _parts(size: int) -> int:
    # Below this, starting threads costs more than it saves.
    return PARTS if size >= 1 << 14 else 1


@kernel(parallel=True)
def _look_up(places, entries, out, parts):
    size = places.shape[0]
    for part in prange(parts):
        for index in range(size * part // parts, size * (part + 1) // parts):
            out[index] = entries[places[index]]


@exclusive
def look_up(codes: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return the entry of every code; the table's first entry is that of the type's smallest code.

    Args:
        codes: int8, uint8 or int16, any shape.
        entries: 256 entries, or 65,536 for int16, of 1 or 2 bytes.
    """
    # Only bytes are moved: seen as unsigned numbers, four compiled loops serve every pair of types.
    plain = np.dtype(f"u{codes.dtype.itemsize}"), np.dtype(f"u{entries.dtype.itemsize}")
    flat = np.ascontiguousarray(codes).reshape(-1).view(plain[0])
    # A copy in either case: to numba a read-only table is another type.
    entries = np.roll(entries, entries.size // 2 if codes.dtype.kind == "i" else 0)
    out = np.empty(flat.shape, dtype=entries.dtype)
    _look_up(flat, entries.view(plain[1]), out.view(plain[1]), _parts(flat.size))
    return out.reshape(codes.shape)


@kernel(parallel=True)
def _interpolate(codes, entries, guard, zero_point, low, high, out, saturated, parts):
    size = codes.shape[0]
    total = 7 + guard
    half = np.int64(1) << (total - 1)
    for part in prange(parts):
        left = 0
        for index in range(size * part // parts, size * (part + 1) // parts):
            place = np.int64(codes[index]) + 32768
            base = np.int64(entries[place >> 7])
            slope = np.int64(entries[(place >> 7) + 1]) - base
            value = (((base << 7) + slope * (place & 127) + half) >> total) + zero_point
            left += value < low or value > high
            out[index] = min(max(value, low), high)
        saturated[part] = left


@exclusive
def interpolate(
    codes: np.ndarray, entries: np.ndarray, guard: int, zero_point: int, dtype: np.dtype
) -> tuple[np.ndarray, int]:
    """Return ``((base * 128 + slope * offset + half) >> (7 + guard)) + zero_point`` and how many had to be clamped.

    Args:
        codes: int16, any shape; the upper 9 bits choose an entry, the lower 7 the place between it and the next.
        entries: int32 (513,), in output steps times ``2**guard``.
        guard: fractional bits of the entries.
        zero_point: added after rounding.
        dtype: type of the output.
    """
    # int16 holds every code there is: one compiled loop serves all types.
    flat = np.ascontiguousarray(codes, dtype=np.int16).reshape(-1)
    out = np.empty(flat.shape, dtype=np.int16)
    limits = np.iinfo(dtype)
    saturated = np.zeros(PARTS, dtype=np.int64)
    _interpolate(flat, entries, guard, zero_point, int(limits.min), int(limits.max), out, saturated, _parts(flat.size))
    return out.astype(dtype, copy=False).reshape(codes.shape), int(saturated.sum())


@kernel(inline=True)
def scale_by(value, multiplier, shift):
    """Return value * multiplier / 2**shift, rounded half up; a shift of 63 and above gives 0."""
    if shift > 62:
        return np.int64(0)
    half = np.int64(1) << (shift - 1) if shift > 0 else np.int64(0)
    return (value * multiplier + half) >> shift


@kernel(inline=True)
def exp_polynomial(a, ln2, b, c):
    """Return exp(-a) in units of the constants' own, for a >= 0 (I-BERT, algorithm 2).

    a = z ln 2 + p with 0 <= p < ln 2, and exp(-a) = 2**-z exp(-p) with exp(-p) ~ 0.3585 (b - p)**2 + 0.344, b = 1.353.
    """
    z = a // ln2
    rest = b - (a - z * ln2)
    return (rest * rest + c) >> min(z, np.int64(62))


@kernel(inline=True)
def erf_polynomial(a, b, one):
    """Return erf(a) in units of ``one``, for a >= 0 (I-BERT, algorithm 1): 1 - 0.2888 (min(a, b) - b)**2, b = 1.769."""
    rest = min(a, b) - b
    return one - rest * rest


@kernel(inline=True)
def _factor(argument, which, constants):
    """Return what the function multiplies its input with (or its value, for logistic and tanh), with FACTOR_BITS."""
    ln2, b, c, one, erf_b, erf_one = constants[0], constants[1], constants[2], constants[3], constants[4], constants[5]
    size = abs(argument)
    if which in (GELU,):
        value = erf_polynomial(size, erf_b, erf_one)
        numerator = erf_one + value if argument >= 0 else erf_one - value
        return ((numerator << (FACTOR_BITS - 1)) + (erf_one >> 1)) // erf_one
    if which == HARD_SWISH:
        clipped = min(max(argument + (np.int64(3) << ARGUMENT_BITS), np.int64(0)), np.int64(6) << ARGUMENT_BITS)
        return (clipped << (FACTOR_BITS - ARGUMENT_BITS)) // 6
    if which == GELU_TANH:
        # 0.5 (1 + tanh(u)) = logistic(2u), u = sqrt(2 / pi) (x + 0.044715 x**3)
        short = min(size, np.int64(16) << ARGUMENT_BITS)
        square = (short * short) >> ARGUMENT_BITS
        cube = (square * short) >> ARGUMENT_BITS
        size = scale_by(short + scale_by(cube, constants[6], 20), constants[7], 20)
    if which == TANH:
        size = size << 1
    power = exp_polynomial(size, ln2, b, c)
    if which == TANH:
        value = ((max(one - power, 0) << FACTOR_BITS) + ((one + power) >> 1)) // (one + power)
        return value if argument >= 0 else -value
    numerator = one if argument >= 0 else power
    return ((numerator << FACTOR_BITS) + ((one + power) >> 1)) // (one + power)


@kernel(parallel=True)
def _polynomial(codes, zero, which, argument, constants, factor, zero_point, low, high, out, saturated, parts):
    size = codes.shape[0]
    for part in prange(parts):
        left = 0
        for index in range(size * part // parts, size * (part + 1) // parts):
            value = np.int64(codes[index]) - zero
            reduced = scale_by(value, argument[0], argument[1])
            reduced = min(max(reduced, -ARGUMENT_LIMIT), ARGUMENT_LIMIT)
            result = _factor(reduced, which, constants)
            if which not in (LOGISTIC, TANH):
                result *= value
            code = scale_by(result, factor[0], factor[1]) + zero_point
            left += code < low or code > high
            out[index] = min(max(code, low), high)
        saturated[part] = left


@exclusive
def polynomial(
    codes: np.ndarray,
    zero: int,
    which: int,
    argument: np.ndarray,
    constants: np.ndarray,
    factor: np.ndarray,
    zero_point: int,
    dtype: np.dtype,
) -> tuple[np.ndarray, int]:
    """Return a function of every code by polynomials, integers only, and how many results had to be clamped.

    Args:
        codes: int8, uint8 or int16, any shape.
        zero: the input's zero point.
        which: LOGISTIC, TANH, GELU, GELU_TANH, SILU or HARD_SWISH.
        argument: int64 (2,): multiplier and right shift from a code to the argument with ARGUMENT_BITS.
        constants: int64 (8,): see ``workbench.integer.polynomials.CONSTANTS``.
        factor: int64 (2,): multiplier and right shift from the result to output steps.
        zero_point: added after rounding.
        dtype: type of the output.
    """
    # int16 holds every code there is: one compiled loop serves all types.
    flat = np.ascontiguousarray(codes, dtype=np.int16).reshape(-1)
    out = np.empty(flat.shape, dtype=np.int16)
    limits = np.iinfo(dtype)
    saturated = np.zeros(PARTS, dtype=np.int64)
    _polynomial(
        flat,
        zero,
        which,
        argument,
        constants,
        factor,
        zero_point,
        int(limits.min),
        int(limits.max),
        out,
        saturated,
        _parts(flat.size),
    )
    return out.astype(dtype, copy=False).reshape(codes.shape), int(saturated.sum())


@kernel()
def exp_codes(values, ln2, b, c):
    """Return ``exp_polynomial`` of an int64 array."""
    out = np.empty_like(values)
    for index in range(values.size):
        out[index] = exp_polynomial(values[index], ln2, b, c)
    return out


@kernel()
def erf_codes(values, b, one):
    """Return the odd function that ``erf_polynomial`` is half of, of an int64 array."""
    out = np.empty_like(values)
    for index in range(values.size):
        value = erf_polynomial(abs(values[index]), b, one)
        out[index] = value if values[index] >= 0 else -value
    return out

"""Softmax over rows of integer codes: one loop per recipe, parallel over rows.

Every recipe needs exp(x - max) of a row's codes only at whole differences. For 8-bit codes that is a table of 256
numbers, prepared beforehand whatever computes it, and long rows reuse one result per difference.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.fixed_point import INT32_MIN, doubling_high_multiply, rescale, rounding_divide_by_power, wrap32
from workbench.kernels.gemmlowp import one_over_one_plus
from workbench.kernels.nonlinear import exp_polynomial, scale_by
from workbench.kernels.roots import bit_length
from workbench.kernels.runtime import exclusive, kernel

#: How a sum of powers becomes codes.
DIVIDE, GEMMLOWP, ONNXRUNTIME = range(3)
#: How a difference of 16-bit codes becomes a power.
PRODUCT, POLYNOMIAL = range(2)

# From this depth on one result per difference is computed and looked up.
_LONG = 256


@kernel(inline=True)
def _here(mask, row, column):
    return mask.shape[0] == 0 or mask[row % mask.shape[0], column] != 0


@kernel(inline=True)
def _row_maximum(codes, mask, row, length):
    top, found = np.int64(0), False
    for column in range(length):
        if _here(mask, row, column):
            value = np.int64(codes[row, column])
            if not found or value > top:
                top, found = value, True
    return top, found


@kernel(inline=True)
def _divided(power, total, factor):
    """Return power / total in output steps, factor = steps * 2**12, rounded half up."""
    return (power * factor + (total << 11)) // (total << 12)


@kernel(parallel=True)
def _by_table(
    codes, mask, lengths, powers, sums, floats, recipe, factor, float_factor, bits, zero, low, high, out, left
):
    rows, depth = codes.shape
    for row in prange(rows):
        length = min(max(np.int64(lengths[row % lengths.shape[0]]), 0), depth)
        for column in range(depth):
            out[row, column] = min(max(zero, low), high)
        top, found = _row_maximum(codes, mask, row, length)
        if not found:
            continue
        total, single, spread = np.int64(0), np.float32(0), np.int64(0)
        for column in range(length):
            if _here(mask, row, column):
                distance = top - np.int64(codes[row, column])
                spread = max(spread, distance)
                total += sums[distance]
                single += floats[distance]
        scale, exponent = np.int64(0), np.int64(0)
        if recipe == GEMMLOWP:
            # The runtime adds in 32 bits.
            total &= 0xFFFFFFFF
            headroom = 32 - bit_length(total)
            # 12 integer bits: what the sum has above 1.
            exponent = 12 - headroom + 31 - bits
            scale = one_over_one_plus((total << headroom) - (np.int64(1) << 31))
        results = np.empty(256, dtype=np.int64)
        beyond = 0
        for distance in range(spread + 1 if length >= _LONG else 0):
            results[distance] = _finished(
                distance, powers, floats, recipe, total, single, factor, float_factor, scale, exponent, low
            )
        for column in range(length):
            if _here(mask, row, column):
                distance = top - np.int64(codes[row, column])
                if length >= _LONG:
                    result = results[distance]
                else:
                    result = _finished(
                        distance, powers, floats, recipe, total, single, factor, float_factor, scale, exponent, low
                    )
                beyond += result + zero > high + 1
                out[row, column] = min(max(wrap32(result + zero), low), high)
        left[row] = beyond


@kernel(inline=True)
def _finished(distance, powers, floats, recipe, total, single, factor, float_factor, scale, exponent, low):
    if recipe == DIVIDE:
        return _divided(powers[distance], total, factor)
    if recipe == GEMMLOWP:
        if powers[distance] == 0:
            return np.int64(0)
        return rounding_divide_by_power(doubling_high_multiply(scale, powers[distance]), exponent)
    steps = floats[distance] * float_factor / single
    if np.isfinite(steps):
        return np.int64(np.rint(steps))
    # Rows of one code overflow in that runtime; this is what its conversions to int32 and uint32 make of infinity.
    return np.int64(INT32_MIN) if low < 0 else np.int64(0)


@exclusive
def softmax_by_table(
    codes: np.ndarray,
    mask: np.ndarray,
    lengths: np.ndarray,
    powers: np.ndarray,
    sums: np.ndarray,
    floats: np.ndarray,
    recipe: int,
    factor: int,
    float_factor: float,
    zero_point: int,
    dtype: np.dtype,
) -> tuple[np.ndarray, int]:
    """Return the softmax of 8-bit codes by rows, and how many results lay more than a step beyond the type.

    Args:
        codes: int8 or uint8 (rows, depth).
        mask: uint8 (some rows, depth), used in turns, 0 where a code takes no part; (0, 0) for none.
        lengths: int64 (some rows,), used in turns: how many codes of a row take part.
        powers: int64 (256,): exp of minus the difference.
        sums: int64 (256,): the same as it is summed.
        floats: float32 (256,): the same for ONNXRUNTIME, which is single precision inside.
        recipe: DIVIDE, GEMMLOWP or ONNXRUNTIME.
        factor: output steps of 1, times 2**12, for DIVIDE.
        float_factor: output steps of 1, for ONNXRUNTIME.
        zero_point: added to every result; what takes no part gets it alone.
        dtype: type of the output.
    """
    # int16 holds every code there is: one compiled loop serves all types.
    out = np.empty(codes.shape, dtype=np.int16)
    left = np.zeros(len(codes), dtype=np.int64)
    limits = np.iinfo(dtype)
    _by_table(
        codes.astype(np.int16, copy=False),
        mask,
        lengths,
        powers,
        sums,
        floats,
        recipe,
        factor,
        np.float32(float_factor),
        limits.bits,
        zero_point,
        int(limits.min),
        int(limits.max),
        out,
        left,
    )
    return out.astype(dtype, copy=False), int(left.sum())


@kernel(inline=True)
def _power16(distance, method, coarse, fine, argument, constants):
    if method == PRODUCT:
        return (coarse[distance >> 8] * fine[distance & 255] + (np.int64(1) << 29)) >> 30
    return exp_polynomial(scale_by(distance, argument[0], argument[1]), constants[0], constants[1], constants[2])


@kernel(parallel=True)
def _by_division(codes, mask, lengths, method, coarse, fine, argument, constants, factor, zero, low, high, out, left):
    rows, depth = codes.shape
    for row in prange(rows):
        length = min(max(np.int64(lengths[row % lengths.shape[0]]), 0), depth)
        for column in range(depth):
            out[row, column] = min(max(zero, low), high)
        top, found = _row_maximum(codes, mask, row, length)
        if not found:
            continue
        total, beyond = np.int64(0), 0
        powers = np.empty(length, dtype=np.int64)
        for column in range(length):
            if _here(mask, row, column):
                powers[column] = _power16(top - np.int64(codes[row, column]), method, coarse, fine, argument, constants)
                total += powers[column]
        for column in range(length):
            if _here(mask, row, column):
                result = _divided(powers[column], total, factor) + zero
                beyond += result > high + 1
                out[row, column] = min(max(result, low), high)
        left[row] = beyond


@exclusive
def softmax_by_division(
    codes: np.ndarray,
    mask: np.ndarray,
    lengths: np.ndarray,
    method: int,
    coarse: np.ndarray,
    fine: np.ndarray,
    argument: np.ndarray,
    constants: np.ndarray,
    factor: int,
    zero_point: int,
    dtype: np.dtype,
) -> tuple[np.ndarray, int]:
    """Return the softmax of 16-bit codes by rows, and how many results lay more than a step beyond the type.

    Args:
        codes: int16 (rows, depth).
        mask: see ``softmax_by_table``.
        lengths: see ``softmax_by_table``.
        method: PRODUCT (two tables of 256) or POLYNOMIAL.
        coarse: int64 (256,): exp of minus 256 times the place, with 30 bits.
        fine: int64 (256,): exp of minus the place, with 30 bits.
        argument: int64 (2,): multiplier and right shift to the polynomial's argument.
        constants: int64: ln 2, b, c.
        factor: output steps of 1, times 2**12.
        zero_point: added to every result; what takes no part gets it alone.
        dtype: type of the output.
    """
    # int16 holds every code there is: one compiled loop serves all types.
    out = np.empty(codes.shape, dtype=np.int16)
    left = np.zeros(len(codes), dtype=np.int64)
    limits = np.iinfo(dtype)
    _by_division(
        codes,
        mask,
        lengths,
        method,
        coarse,
        fine,
        argument,
        constants,
        factor,
        zero_point,
        int(limits.min),
        int(limits.max),
        out,
        left,
    )
    return out.astype(dtype, copy=False), int(left.sum())


@kernel(inline=True)
def _anchored(code, anchors):
    place = code + 32768
    base = anchors[place >> 7]
    # The runtime keeps a slope in 16 bits.
    slope = np.int64(np.int16(anchors[(place >> 7) + 1] - base))
    return base + ((slope * (place & 127) + 64) >> 7)


@kernel(parallel=True)
def _tflite16(codes, mask, lengths, multiplier, shift, rule, exps, reciprocals, out):
    rows, depth = codes.shape
    for row in prange(rows):
        length = min(max(np.int64(lengths[row % lengths.shape[0]]), 0), depth)
        out[row, :] = 0
        top, found = _row_maximum(codes, mask, row, length)
        if not found:
            continue
        total = np.int64(0)
        for column in range(length):
            if _here(mask, row, column):
                scaled = rescale(np.int64(codes[row, column]) - top, multiplier, shift, rule) + 32767
                power = _anchored(min(max(scaled, -32768), 32767), exps)
                out[row, column] = power
                total += power
        headroom = 32 - bit_length(total)
        shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
        centred = min(max(shifted - (1 << 15) - (1 << 16), -32768), 32767)
        reciprocal = _anchored(centred, reciprocals)
        right = 31 - headroom
        half = np.int64(1) << (right - 1)
        for column in range(length):
            if _here(mask, row, column):
                result = (np.int64(out[row, column]) * reciprocal + half) >> right
                out[row, column] = min(max(result, 0), 32767)


@exclusive
def softmax_tflite16(
    codes: np.ndarray,
    mask: np.ndarray,
    lengths: np.ndarray,
    multiplier: int,
    shift: int,
    rule: int,
    exps: np.ndarray,
    reciprocals: np.ndarray,
) -> np.ndarray:
    """Return TensorFlow Lite's softmax of int16 codes (SoftmaxInt16 of reference/softmax.h), scale 1 / 32768.

    Args:
        codes: int16 (rows, depth).
        mask: see ``softmax_by_table``.
        lengths: see ``softmax_by_table``.
        multiplier: from a difference to 65535ths of 10.
        shift: its shift.
        rule: of ``workbench.kernels.fixed_point``.
        exps: int64 (513,): exp on [-10, 0].
        reciprocals: int64 (513,): 1 / (1 + x) on [0, 1].
    """
    out = np.empty(codes.shape, dtype=np.int16)
    _tflite16(codes, mask, lengths, multiplier, shift, rule, exps, reciprocals, out)
    return out

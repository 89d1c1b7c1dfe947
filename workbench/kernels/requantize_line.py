"""One row of accumulators to codes: a loop per rounding rule without branches, so that it becomes vector instructions."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from workbench.kernels.fixed_point import (
    DOUBLE,
    INT32_MAX,
    INT32_MIN,
    RIGHT_DOUBLE,
    SINGLE,
    WIDE,
)
from workbench.kernels.runtime import kernel

_FAR = 2.0**40
_OPTIONS: Any = {"error_model": "numpy", "boundscheck": False, "nogil": True}


@kernel(inline=True)
def _outside(code, low, high):
    return np.int64(code < low) + np.int64(code > high)


@kernel(inline=True)
def _by_float32(values, factors, zero_point, low, high, floor, ceiling, out):
    saturated = np.int64(0)
    for channel in range(out.shape[0]):
        product = np.rint(np.float32(values[channel]) * np.float32(factors[channel]))
        product = min(max(product, np.float32(-_FAR)), np.float32(_FAR))
        code = np.int64(product) + zero_point
        saturated += _outside(code, floor, ceiling)
        out[channel] = min(max(code, low), high)
    return saturated, np.int64(0)


@kernel(inline=True)
def _by_float64(values, factors, zero_point, low, high, floor, ceiling, out):
    saturated, wrapped = np.int64(0), np.int64(0)
    for channel in range(out.shape[0]):
        product = np.float64(values[channel]) * np.float64(factors[channel])
        size = min(np.abs(product), _FAR)
        # Adding one half to the size would round 0.49999999999999994 up.
        whole = np.int64(size)
        whole += np.int64(size - np.float64(whole) >= 0.5)
        code = whole if product >= 0.0 else -whole
        far = _outside(code, INT32_MIN, INT32_MAX)
        wrapped += far
        code = (INT32_MIN if far else code) + zero_point
        saturated += _outside(code, floor, ceiling)
        out[channel] = min(max(code, low), high)
    return saturated, wrapped


@kernel(inline=True)
def _by_double(values, multipliers, shifts, zero_point, low, high, floor, ceiling, out):
    saturated, wrapped = np.int64(0), np.int64(0)
    for channel in range(out.shape[0]):
        shift = np.int64(shifts[channel])
        left = max(shift, np.int64(0))
        right = left - shift
        moved = np.int64(values[channel]) << left
        wrapped += _outside(moved, INT32_MIN, INT32_MAX)
        a, b = np.int64(np.int32(moved)), np.int64(multipliers[channel])
        product = a * b
        negative = np.int64(product < 0)
        # Division by 2**31 that truncates towards zero, after adding half a step away from it.
        product += np.int64(1 << 30) + negative * (np.int64(1) - np.int64(1 << 31))
        code = (product + negative * np.int64((1 << 31) - 1)) >> 31
        code = INT32_MAX if (a == INT32_MIN) & (b == INT32_MIN) else code
        mask = (np.int64(1) << right) - 1
        threshold = (mask >> 1) + np.int64(code < 0)
        code = (code >> right) + np.int64((code & mask) > threshold) + zero_point
        saturated += _outside(code, floor, ceiling)
        out[channel] = min(max(code, low), high)
    return saturated, wrapped


@kernel(inline=True)
def _by_shift(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out):
    # What differs between these rules is decided once, so that the loop has no branch.
    saturated, wrapped = np.int64(0), np.int64(0)
    tflite, wide, twice = (rule == SINGLE) | (rule == WIDE), rule == WIDE, rule == RIGHT_DOUBLE
    places = np.int64(31) if rule == SINGLE else np.int64(15)
    extra = np.int64(1 << 30) if twice else np.int64(0)
    for channel in range(out.shape[0]):
        value, multiplier, shift = np.int64(values[channel]), np.int64(multipliers[channel]), np.int64(shifts[channel])
        total = places - shift if tflite else shift
        short = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else np.int64(0x7FFF)
        multiplier = short if wide else multiplier
        half = np.int64(1) << (total - 1)
        signed = extra if value >= 0 else -extra
        half += signed if total > 31 else np.int64(0)
        code = (value * multiplier + half) >> total
        wrapped += _outside(code, INT32_MIN, INT32_MAX)
        code = (np.int64(np.int32(code)) if tflite else code) + zero_point
        saturated += _outside(code, floor, ceiling)
        out[channel] = min(max(code, low), high)
    return saturated, wrapped


@kernel(inline=True)
def _by_integers(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out):
    if rule == DOUBLE:
        return _by_double(values, multipliers, shifts, zero_point, low, high, floor, ceiling, out)
    return _by_shift(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out)


def requantize_line(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out) -> Any:
    """Write ``clamp(rescale(values) + zero_point, low, high)``; return how many left floor...ceiling and how many int32.

    All arrays have one length; see ``workbench.kernels.fixed_point`` for the rules, which this function must equal.
    Kernels call it; the factors' type decides which loops are compiled.
    """
    raise NotImplementedError


@overload(requantize_line, jit_options=_OPTIONS)
def _choose(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out):
    loop: Any = {types.float32: _by_float32, types.float64: _by_float64}.get(multipliers.dtype, _by_integers)

    def by_floats(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out):
        return loop(values, multipliers, zero_point, low, high, floor, ceiling, out)

    def by_integers(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out):
        return loop(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out)

    return by_integers if loop is _by_integers else by_floats

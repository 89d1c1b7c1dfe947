"""One accumulator to one code on a GPU, as each runtime rounds it (``workbench.kernels.requantize_line`` on the CPU)."""

# Compiled functions: numba infers their types.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import numpy as np
from numba import cuda

from workbench.kernels.fixed_point import DOUBLE, INT32_MAX, INT32_MIN, RIGHT_DOUBLE, SINGLE, WIDE

_FAR = 2.0**40


@cuda.jit(device=True)
def by_float32(value, factor, shift, rule):
    """Return the rescaled number (half to even) and whether it left 32 bits."""
    product = np.float32(value) * np.float32(factor)
    product = min(max(product, np.float32(-_FAR)), np.float32(_FAR))
    whole = np.int64(product)
    rest = product - np.float32(whole)
    size = rest if rest >= 0 else -rest
    if size > np.float32(0.5) or (size == np.float32(0.5) and whole & 1):
        whole += 1 if product >= 0 else -1
    return whole, 0


@cuda.jit(device=True)
def by_float64(value, factor, shift, rule):
    """Return the rescaled number (half away from zero) and whether it left 32 bits."""
    product = np.float64(value) * np.float64(factor)
    size = min(product if product >= 0 else -product, _FAR)
    whole = np.int64(size)
    if size - np.float64(whole) >= 0.5:
        whole += 1
    code = whole if product >= 0 else -whole
    if code < INT32_MIN or code > INT32_MAX:
        return np.int64(INT32_MIN), 1
    return code, 0


@cuda.jit(device=True)
def by_integers(value, multiplier, shift, rule):
    """Return the rescaled number and whether it wrapped at 32 bits on the way."""
    value, multiplier, shift = np.int64(value), np.int64(multiplier), np.int64(shift)
    if rule == DOUBLE:
        left = shift if shift > 0 else np.int64(0)
        right = left - shift
        moved = value << left
        wrapped = 1 if moved < INT32_MIN or moved > INT32_MAX else 0
        moved = np.int64(np.int32(moved))
        if moved == INT32_MIN and multiplier == INT32_MIN:
            code = np.int64(INT32_MAX)
        else:
            product = moved * multiplier
            if product >= 0:
                code = (product + (np.int64(1) << np.int64(30))) >> np.int64(31)
            else:
                # C's division truncates towards zero.
                code = -((-(product + np.int64(1) - (np.int64(1) << np.int64(30)))) >> np.int64(31))
        mask = (np.int64(1) << right) - np.int64(1)
        threshold = (mask >> np.int64(1)) + (1 if code < 0 else 0)
        return (code >> right) + (1 if code & mask > threshold else 0), wrapped
    total = shift
    if rule == SINGLE:
        total = np.int64(31) - shift
    elif rule == WIDE:
        multiplier = (multiplier + (1 << 15)) >> np.int64(16) if multiplier < 0x7FFF0000 else np.int64(0x7FFF)
        total = np.int64(15) - shift
    half = np.int64(1) << (total - np.int64(1))
    if rule == RIGHT_DOUBLE and total > 31:
        half += np.int64(1 << 30) if value >= 0 else -np.int64(1 << 30)
    code = (value * multiplier + half) >> total
    wrapped = 1 if code < INT32_MIN or code > INT32_MAX else 0
    if rule in (SINGLE, WIDE):
        code = np.int64(np.int32(code))
    return code, wrapped


def rounding(dtype: np.dtype):
    """Return the device function for a type of factors: float32, float64 or integers."""
    return {"float32": by_float32, "float64": by_float64}.get(np.dtype(dtype).name, by_integers)

"""Accumulators to codes on a GPU: same name and integers as ``workbench.kernels.requantize``."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from workbench.kernels.cuda.dot4 import SIMULATED
from workbench.kernels.cuda.rounding import rounding
from workbench.kernels.requantize import per_line

#: Threads of a block.
THREADS = 16 if SIMULATED else 256


@cache
def _kernel(factor_type: str) -> Any:
    rescale = rounding(np.dtype(factor_type))

    @cuda.jit
    def requantize(values, factors, shifts, numbers, out, counts):
        place = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if place < values.shape[0]:
            channel = place % factors.shape[0]
            # numbers: rule, zero point, low, high, the type's least and largest.
            code, wrapped = rescale(values[place], factors[channel], shifts[channel], numbers[0])
            code += numbers[1]
            if wrapped:
                cuda.atomic.add(counts, 1, 1)
            if code < numbers[4] or code > numbers[5]:
                cuda.atomic.add(counts, 0, 1)
            out[place] = min(max(code, numbers[2]), numbers[3])

    return requantize


def requantize_rows(
    values: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    rule: int,
    zero_point: int,
    low: int,
    high: int,
    dtype: np.dtype,
) -> tuple[np.ndarray, int, int]:
    """Return codes, how many left the dtype, and how many wrapped before.

    Args:
        values: int32 or int64 accumulators (rows, channels).
        multiplier: one or one per channel: integers, float32 or float64, as the rule wants.
        shift: as many.
        rule: one of ``workbench.kernels.fixed_point``.
        zero_point: added after rounding.
        low: smallest code to give.
        high: largest code.
        dtype: integer type of the codes.
    """
    if not values.size:
        return np.empty(values.shape, dtype=dtype), 0, 0
    factors, shifts = per_line(multiplier, shift, multiplier.size)
    limits = np.iinfo(dtype)
    numbers = np.array([rule, zero_point, low, high, limits.min, limits.max], dtype=np.int64)
    out = cuda.device_array(values.size, dtype=dtype)
    counts = cuda.to_device(np.zeros(2, dtype=np.int64))
    sides = [cuda.to_device(side) for side in (np.ascontiguousarray(values).reshape(-1), factors, shifts, numbers)]
    _kernel(factors.dtype.name)[-(-values.size // THREADS), THREADS](*sides, out, counts)
    saturated, wrapped = counts.copy_to_host()
    return out.copy_to_host().reshape(values.shape), int(saturated), int(wrapped)

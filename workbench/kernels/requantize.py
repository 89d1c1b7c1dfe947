"""Accumulators to output codes, channel by channel, with a count of what had to be clamped or wrapped."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.requantize_line import requantize_line
from workbench.kernels.runtime import kernel, lock, threads

#: Lines are dealt to the threads in this many pieces, so that the counts need no atomics.
PARTS = 16

#: With one factor for everything, this many numbers make a line.
LINE = 1024

#: Fewer numbers than these are not worth waking the other threads for.
FEW = 1 << 17


@kernel(inline=True)
def _lines(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out, first, last):
    width = multipliers.shape[0]
    saturated, wrapped = np.int64(0), np.int64(0)
    for line in range(first, last):
        begin, end = line * width, min((line + 1) * width, values.shape[0])
        count = end - begin
        more = requantize_line(
            values[begin:end],
            multipliers[:count],
            shifts[:count],
            rule,
            zero_point,
            low,
            high,
            floor,
            ceiling,
            out[begin:end],
        )
        saturated += more[0]
        wrapped += more[1]
    return saturated, wrapped


@kernel()
def _alone(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out, lines, counts):
    counts[0, 0], counts[0, 1] = _lines(
        values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out, 0, lines
    )


@kernel(parallel=True)
def _together(values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out, lines, counts):
    for part in prange(PARTS):
        first, last = lines * part // PARTS, lines * (part + 1) // PARTS
        counts[part, 0], counts[part, 1] = _lines(
            values, multipliers, shifts, rule, zero_point, low, high, floor, ceiling, out, first, last
        )


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
    """Return ``clamp(rescale(values) + zero_point, low, high)``, how many left the dtype, how many wrapped before.

    Args:
        values: int32 or int64 accumulators (rows, channels), C order.
        multiplier: one or one per channel: integers, float32 for the rule ``FLOAT32``, float64 for ``FLOAT64``.
        shift: int32, same length.
        rule: one of ``workbench.kernels.fixed_point``.
        zero_point: added after rounding.
        low: smallest code to give (an activation's lower clamp).
        high: largest code.
        dtype: integer type of the codes.
    """
    out = np.empty(values.shape, dtype=dtype)
    if not out.size:
        return out, 0, 0
    multiplier, shift = per_line(multiplier, shift, values.shape[1] if multiplier.size > 1 else min(LINE, values.size))
    counts = np.zeros((PARTS, 2), dtype=np.int64)
    limits = np.iinfo(dtype)
    lines = -(-values.size // multiplier.size)
    numbers = (rule, zero_point, low, high, int(limits.min), int(limits.max))
    arguments = (values.reshape(-1), multiplier, shift, *numbers, out.reshape(-1), lines, counts)
    if values.size < FEW or lines == 1 or threads() == 1:
        _alone(*arguments)
    else:
        with lock:
            _together(*arguments)
    saturated, wrapped = (int(total) for total in counts.sum(axis=0))
    return out, saturated, wrapped


def per_line(multiplier: np.ndarray, shift: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one factor and shift per number of a line: int64, float32 or float64; int64."""
    kind = multiplier.dtype if multiplier.dtype.kind == "f" else np.int64
    found = (np.broadcast_to(side, (width,)).astype(type_) for side, type_ in ((multiplier, kind), (shift, np.int64)))
    first, second = found
    return first, second

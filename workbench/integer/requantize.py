"""Accumulator to output codes: the one place where a runtime's rounding happens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.arguments import as_array, check_factors, check_zero_point, clamp_limits, code_type, one_integer
from workbench.integer.fixed_point import WIDE, check_factor, check_multiplier, quantize_multiplier
from workbench.integer.semantics import TFLITE_SINGLE, Semantics, as_semantics
from workbench.integer.watch import Observation, note
from workbench.kernels import fixed_point as rules
from workbench.kernels.requantize import requantize_rows

_FACTOR_TYPES: dict[str, type] = {"float32": np.float32, "float64": np.float64}


def requantize(
    accumulator: np.ndarray,
    multiplier: Any = None,
    shift: Any = None,
    *,
    scale: Any = None,
    zero_point: int = 0,
    dtype: Any = np.int8,
    low: int | None = None,
    high: int | None = None,
    axis: int = -1,
    semantics: Semantics | str = "litert-reference",
    operator: str = "requantize",
) -> np.ndarray:
    """Return ``clamp(round(accumulator * factor) + zero_point, low, high)`` as one runtime rounds it.

    Formulas, with m = multiplier and s = shift (see ``quantize_multiplier`` for what they stand for):

    * ``litert-reference``: ``round(float64(a) * float64(scale))``, half away from zero, for a real scale; ready
      multipliers round once in fixed point, as ``tflite-single``. This is its fully-connected; its other operators round
      as ``tflm`` (``outside_linear``).
    * ``tflm``: ``divide(high_multiply(a << max(s, 0), m), max(-s, 0))``, both rounding half away from zero
    * ``tflite-single``: ``(a * m + 2**(30 - s)) >> (31 - s)``
    * ``tosa-single``: ``(a * m + 2**(s - 1)) >> s``; ``tosa-double`` adds ±2**30 first where s > 31
    * ``onnxruntime``: ``rint(float32(a) * float32(factor))``

    int64 accumulators (those of int16 operands) are multiplied by 15-bit multipliers in ``tflm`` and
    ``tflite-single``: ``(a * ((m + 2**15) >> 16) + 2**(14 - s)) >> (15 - s)``.
    A result beyond 32 bits keeps its low 32 in these two and is the least int32 in ``litert-reference``, as those
    runtimes have it on x86; ``watch`` counts such results.

    Args:
        accumulator: int32 or int64, any shape.
        multiplier: ready multipliers in the runtime's own convention, one or one per channel; or give ``scale``.
        shift: their shifts, as many.
        scale: real factors instead of ready ones, one or one per channel.
        zero_point: code of the real number 0.
        dtype: int8, uint8, int16 or int32.
        low: smallest code to give; the type's by default.
        high: largest code to give.
        axis: which axis of the accumulator the channels are.
        semantics: which runtime.
        operator: the name that ``watch`` shows.

    Raises:
        IntegerError: wrong types, shapes or ranges.
        SemanticsError: a factor outside the runtime's specification.
        AccumulatorOverflowError: a sum of int16 operands beyond 48 bits.
    """
    named = as_semantics(semantics)
    accumulator = as_array(accumulator, "an accumulator")
    if accumulator.dtype not in {np.dtype(np.int32), np.dtype(np.int64)}:
        message = f"an accumulator is int32 or int64, not {accumulator.dtype}"
        raise IntegerError(message)
    wide = accumulator.dtype.itemsize > 4
    rounding = prepare_rounding(
        named,
        multiplier,
        shift,
        scale=scale,
        zero_point=zero_point,
        dtype=dtype,
        low=low,
        high=high,
        wide=wide,
        accumulator=accumulator,
    )
    if accumulator.ndim == 0:
        rows = accumulator.reshape(1, 1)
        moved_shape = None
    else:
        axis = one_integer(
            axis, f"an axis of an accumulator {accumulator.shape}", -accumulator.ndim, accumulator.ndim - 1
        )
        moved = np.moveaxis(accumulator, axis, -1)
        moved_shape = moved.shape
        rows = np.ascontiguousarray(moved).reshape(math.prod(moved.shape[:-1]), moved.shape[-1])
    if rounding.multiplier.size not in {1, rows.shape[1]}:
        message = f"{rounding.multiplier.size} multipliers for {rows.shape[1]} channels along axis {axis}"
        raise IntegerError(message)
    codes, saturated, wrapped = requantize_rows(rows, *rounding)
    note(Observation(operator, outputs=int(codes.size), saturated=saturated, overflows=wrapped))
    if moved_shape is None:
        return codes.reshape(())
    return np.ascontiguousarray(np.moveaxis(codes.reshape(moved_shape), -1, axis))


class Rounding(NamedTuple):
    """Everything after the accumulator, checked: what ``workbench.kernels.requantize.requantize_rows`` takes."""

    multiplier: np.ndarray
    shift: np.ndarray
    rule: int
    zero_point: int
    low: int
    high: int
    dtype: np.dtype


def prepare_rounding(
    named: Semantics,
    multiplier: Any,
    shift: Any,
    *,
    scale: Any,
    zero_point: int,
    dtype: Any,
    low: int | None,
    high: int | None,
    wide: bool,
    accumulator: np.ndarray | None = None,
) -> Rounding:
    """Check what ``requantize`` is given, in its order, and bring it into the kernels' form.

    Args:
        named: whose rounding.
        multiplier: see ``requantize``; so are the next six.
        shift: their shifts.
        scale: real factors instead.
        zero_point: code of the real number 0.
        dtype: of the codes.
        low: smallest code.
        high: largest code.
        wide: whether the accumulator has 64 bits.
        accumulator: the sums where they are at hand; else the caller knows that they fit 48 bits.

    Raises:
        IntegerError: wrong types, shapes or ranges.
        SemanticsError: a factor outside the runtime's specification.
        AccumulatorOverflowError: a sum of int16 operands beyond 48 bits.
    """
    kind = code_type(dtype)
    check_zero_point(zero_point, kind)
    bits = WIDE if wide else 32
    if not check_factors(multiplier, shift, scale) and scale is None:
        message = "give either ready multipliers (and shifts) or a real scale"
        raise IntegerError(message)
    if named.rounding == "float64" and multiplier is not None:
        named = TFLITE_SINGLE  # ready multipliers are fixed-point, and the fixed-point form of one rounding is this
    if named.rounding == "float64":
        multiplier, shift = check_factor(scale), np.zeros(np.shape(scale), dtype=np.int32)
    elif multiplier is None:
        multiplier, shift = quantize_multiplier(scale, named, accumulator_bits=bits)
    else:
        shift = np.zeros(np.shape(multiplier), dtype=np.int32) if shift is None else shift
        check_multiplier(multiplier, shift, named, accumulator_bits=bits)
    multiplier, shift = np.atleast_1d(np.asarray(multiplier)), np.atleast_1d(np.asarray(shift))
    if multiplier.ndim > 1 or multiplier.shape != shift.shape:
        message = f"as many shifts as multipliers: one, or one per channel, not {multiplier.shape} and {shift.shape}"
        raise IntegerError(message)
    if accumulator is not None and wide and not named.rounding.startswith("float"):
        _check_width(accumulator)
    low, high = clamp_limits(low, high, kind)
    factors = multiplier.astype(_FACTOR_TYPES.get(named.rounding, np.int64))
    return Rounding(factors, shift.astype(np.int64), _rule(named, wide=wide), int(zero_point), low, high, kind)


def _check_width(accumulator: np.ndarray) -> None:
    """Refuse sums beyond 48 bits: times a 15-bit multiplier they would leave the 64-bit product."""
    low, high = int(accumulator.min(initial=0)), int(accumulator.max(initial=0))
    if max(high, -low - 1) >= 1 << (WIDE - 1):
        message = f"an int64 accumulator holds {WIDE} bits when it is rescaled, and this one reaches {max(high, -low)}"
        raise AccumulatorOverflowError(message)


def _rule(named: Semantics, *, wide: bool) -> int:
    if named.rounding == "float32":
        return rules.FLOAT32
    if named.rounding == "float64":
        return rules.FLOAT64
    if named.shift_is_right:
        return rules.RIGHT_DOUBLE if named.rounding == "double" and not wide else rules.RIGHT_SINGLE
    if wide:
        return rules.WIDE
    return rules.DOUBLE if named.rounding == "double" else rules.SINGLE

"""Rounding rules written from their specifications, in Python's own integers and fractions: slow, and independent."""

from __future__ import annotations

from fractions import Fraction

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def wrap32(value):
    return (value + 2**31) % 2**32 - 2**31


def truncating_division(a, b):
    """C's integer division."""
    return -(-a // b) if (a < 0) != (b < 0) else a // b


def doubling_high_multiply(a, b):
    """gemmlowp fixedpoint.h, SaturatingRoundingDoublingHighMul."""
    if a == b == INT32_MIN:
        return INT32_MAX
    product = a * b
    nudge = 2**30 if product >= 0 else 1 - 2**30
    return truncating_division(product + nudge, 2**31)


def rounding_divide_by_power(x, exponent):
    """gemmlowp fixedpoint.h, RoundingDivideByPOT: nearest, half away from zero."""
    magnitude = (2 * abs(x) + 2**exponent) // 2 ** (exponent + 1) if exponent else abs(x)
    return magnitude if x >= 0 else -magnitude


def double_rounding(a, multiplier, shift):
    """TensorFlow Lite, MultiplyByQuantizedMultiplier without TFLITE_SINGLE_ROUNDING."""
    moved = wrap32(a * 2 ** max(shift, 0))
    return rounding_divide_by_power(doubling_high_multiply(moved, multiplier), max(-shift, 0))


def floor_half_up(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def single_rounding(a, multiplier, shift):
    """The same with TFLITE_SINGLE_ROUNDING."""
    return wrap32(floor_half_up(Fraction(a * multiplier) / Fraction(2) ** (31 - shift)))


def wide_rounding(a, multiplier, shift):
    """The overload for int64 accumulators: a multiplier of 15 bits."""
    reduced = (multiplier + 2**15) // 2**16 if multiplier < 0x7FFF0000 else 0x7FFF
    return wrap32(floor_half_up(Fraction(a * reduced) / Fraction(2) ** (15 - shift)))


def tosa_scale_32(value, multiplier, shift, *, double):
    """TOSA 1.0, apply_scale_32."""
    nudge = 2 ** (shift - 1)
    if double and shift > 31:
        nudge += 2**30 if value >= 0 else -(2**30)
    return (value * multiplier + nudge) // 2**shift


def tosa_scale_16(value, multiplier, shift):
    """TOSA 1.0, apply_scale_16."""
    return (value * multiplier + 2 ** (shift - 1)) // 2**shift


def nearest_float(value: Fraction, digits: int) -> Fraction:
    """The nearest binary float of that many digits, half to even, exponents without bounds."""
    if value == 0:
        return value
    magnitude, exponent = abs(value), 0
    while magnitude >= 2**digits:
        magnitude, exponent = magnitude / 2, exponent + 1
    while magnitude < 2 ** (digits - 1):
        magnitude, exponent = magnitude * 2, exponent - 1
    rounded = Fraction(round(magnitude)) * Fraction(2) ** exponent
    return rounded if value > 0 else -rounded


def float32_rounding(a, factor):
    """ONNX Runtime MLAS, MlasRequantizeOutput: float32(accumulator) * scale, then half to even."""
    product = nearest_float(nearest_float(Fraction(a), 24) * Fraction(float(factor)), 24)
    return round(product)


def float64_rounding(a, factor):
    """LiteRT reference fully-connected: double(accumulator) * scale, then C's round; beyond int32 as x86 converts."""
    product = nearest_float(nearest_float(Fraction(a), 53) * Fraction(float(factor)), 53)
    magnitude = floor_half_up(abs(product))
    rounded = magnitude if product >= 0 else -magnitude
    return rounded if INT32_MIN <= rounded <= INT32_MAX else INT32_MIN


def quantize_multiplier(real: float):
    """TensorFlow Lite quantization_util.cc, QuantizeMultiplier."""
    if real == 0:
        return 0, 0
    fraction, shift = Fraction(real), 0
    while fraction >= 1:
        fraction, shift = fraction / 2, shift + 1
    while fraction < Fraction(1, 2):
        fraction, shift = fraction * 2, shift - 1
    mantissa = floor_half_up(fraction * 2**31)
    if mantissa == 2**31:
        mantissa, shift = mantissa // 2, shift + 1
    return (0, 0) if shift < -31 else (mantissa, shift)


def requantize_one(a, multiplier, shift, semantics, *, wide):
    """One accumulator times a ready multiplier under one semantics, before zero point and clamp.

    LiteRT's float64 rounding belongs to real scales (``float64_rounding``); ready multipliers round once, in fixed point.
    """
    if semantics == "onnxruntime":
        return float32_rounding(a, multiplier)
    if semantics.startswith("tosa"):
        if wide:
            return tosa_scale_16(a, multiplier, shift)
        return tosa_scale_32(a, multiplier, shift, double=semantics.endswith("double"))
    if wide:
        return wide_rounding(a, multiplier, shift)
    return (double_rounding if semantics == "tflm" else single_rounding)(a, multiplier, shift)

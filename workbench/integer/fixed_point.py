"""A real factor as the integers a runtime multiplies with: mantissa and shift, or one float32 number."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import SemanticsError
from workbench.integer.arguments import as_array, check_word, one_integer, real_numbers, shown
from workbench.integer.semantics import Semantics, as_semantics

#: Accumulators wider than int32 are multiplied by 15-bit mantissas (so that the product fits 64 bits) and have 48.
WIDE = 48


def quantize_multiplier(
    real: Any, semantics: Semantics | str = "litert-reference", *, accumulator_bits: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Return a real factor as ``(multiplier, shift)`` in a runtime's own convention.

    * ``tflm``, ``litert-reference``, ``tflite-single``: ``real ~ multiplier / 2**31 * 2**shift``, multiplier int32 in [2**30, 2**31),
      shift -31 to 30 (frexp; half away from zero; a factor below 2**-32 becomes 0).
    * ``tosa-*``: ``real ~ multiplier / 2**shift``, shift 2 to 62; the multiplier has 31 bits, or 15 bits for
      accumulators wider than 32 bits.
    * ``onnxruntime``: ``multiplier`` is the float32 number nearest ``real``; ``shift`` is 0.

    Args:
        real: non-negative finite factors, a number or an array (one per channel).
        semantics: which runtime.
        accumulator_bits: 32, or more for the int64 accumulators of int16 operands.

    Returns:
        Two arrays of the shape of ``real``: int32 (float32 for ``onnxruntime``), and int32.

    Raises:
        SemanticsError: a factor is negative, not finite, or too large for the runtime.

    >>> [int(part) for part in quantize_multiplier(0.25)]
    [1073741824, -1]
    """
    named = as_semantics(semantics)
    real = check_factor(real)
    accumulator_bits = one_integer(accumulator_bits, "accumulator_bits", 2, 64)
    if named.rounding == "float32":
        with np.errstate(over="ignore"):
            factor = real.astype(np.float32)
        if not np.all(np.isfinite(factor)):
            message = f"the factor {real.max():g} is beyond float32, which {named} multiplies with"
            raise SemanticsError(message)
        return factor, np.zeros(real.shape, dtype=np.int32)
    bits = 15 if named.shift_is_right and accumulator_bits > 32 else 31
    fraction, exponent = np.frexp(real)
    # Half away from zero, as C's round; np.round would go to even.
    mantissa = np.floor(fraction * 2.0**bits + 0.5).astype(np.int64)
    full = mantissa == 1 << bits
    mantissa = np.where(full, mantissa >> 1, mantissa)
    exponent = exponent.astype(np.int64) + full
    if named.shift_is_right:
        return _right(mantissa, bits - exponent, real, named)
    vanishing = exponent < -31
    mantissa, exponent = np.where(vanishing, 0, mantissa), np.where(vanishing, 0, exponent)
    check_multiplier(mantissa, exponent, named, accumulator_bits=accumulator_bits)
    return mantissa.astype(np.int32), exponent.astype(np.int32)


def check_factor(real: Any) -> np.ndarray:
    """Return real factors as float64.

    Raises:
        SemanticsError: one is negative or not finite.
    """
    real = real_numbers(real, "a rescaling factor")
    sound = np.isfinite(real) & (real >= 0)
    if not np.all(sound):
        message = f"a rescaling factor is a finite number, 0 or above, not {real[~sound].flat[0]}"
        raise SemanticsError(message)
    return real


def _right(
    mantissa: np.ndarray, shift: np.ndarray, real: np.ndarray, named: Semantics
) -> tuple[np.ndarray, np.ndarray]:
    # Below 2**-62 the mantissa loses low bits instead; above, nothing can be done.
    excess = np.clip(shift - 62, 0, 62)
    half = np.where(excess > 0, np.int64(1) << np.maximum(excess - 1, 0), 0)
    mantissa = (mantissa + half) >> excess
    shift = np.where(mantissa == 0, 2, np.minimum(shift, 62))
    if np.any(shift < 2):
        message = f"the factor {real.max():g} is too large for {named}: its shift would be below 2"
        raise SemanticsError(message)
    return mantissa.astype(np.int32), shift.astype(np.int32)


def check_multiplier(multiplier: Any, shift: Any, semantics: Semantics | str, *, accumulator_bits: int = 32) -> None:
    """Refuse a ready multiplier and shift that the runtime's specification does not allow.

    Raises:
        SemanticsError: with the range that the specification gives.
    """
    named = as_semantics(semantics)
    multiplier, shift = as_array(multiplier, "a multiplier"), as_array(shift, "a shift")
    if named.rounding == "float32":
        if multiplier.dtype.kind not in "iuf" or not np.all(np.isfinite(multiplier)) or np.any(shift != 0):
            message = f"{named} multiplies by a finite float32 number and has no shift"
            raise SemanticsError(message)
        return
    if multiplier.dtype.kind not in "iu" or shift.dtype.kind not in "iu":
        message = f"{named} multiplies by integers: give integer arrays, or real scales"
        raise SemanticsError(message)
    wide = accumulator_bits > 32
    top = (1 << 15 if wide and named.shift_is_right else 1 << 31) - 1
    if np.any(multiplier < 0) or np.any(multiplier > top):
        message = f"a multiplier of {named} lies between 0 and {top}, not {_first_outside(multiplier, 0, top)}"
        raise SemanticsError(message)
    low, high = (2, 62) if named.shift_is_right else (-31, 7 if wide else 30)
    if np.any(shift < low) or np.any(shift > high):
        message = f"a shift of {named} lies between {low} and {high}, not {_first_outside(shift, low, high)}"
        raise SemanticsError(message)


def _first_outside(values: np.ndarray, low: int, high: int) -> int:
    return int(values[(values < low) | (values > high)].flat[0])


def effective_scale(
    input_scale: Any,
    weight_scale: Any,
    output_scale: Any,
    semantics: Semantics | str,
    *,
    product: str = "float64",
) -> np.ndarray:
    """Return input scale * weight scale / output scale, in the arithmetic of the runtime that computes it.

    Args:
        input_scale: float32 number.
        weight_scale: float32 number, or one per output channel.
        output_scale: float32 number.
        semantics: ``onnxruntime`` computes in float32 throughout, the others in float64.
        product: ``"float32"`` where the runtime rounds the product of the first two to float32 first (LiteRT's
            matrix products and legacy uint8 convolutions do; nothing else of it, and nothing of TensorFlow Lite Micro).

    Raises:
        SemanticsError: a scale is not a finite number above 0.
    """
    named = as_semantics(semantics)
    check_word(product, ("float64", "float32"), "a product's precision")
    scales = []
    for name, scale in (("input", input_scale), ("weight", weight_scale), ("output", output_scale)):
        with np.errstate(over="ignore"):
            values = real_numbers(scale, f"the {name} scale").astype(np.float32)
        if values.size == 0 or not np.all(np.isfinite(values)) or np.any(values <= 0):
            message = f"the {name} scale is a finite float32 number above 0, not {shown(scale)}"
            raise SemanticsError(message)
        scales.append(values)
    first, second, third = scales
    if named.rounding == "float32":
        with np.errstate(over="ignore"):  # an infinite factor is refused by name
            return np.asarray((first * second) / third, dtype=np.float64)
    if product == "float32" and named.rounding != "float64":
        return np.asarray((first * second).astype(np.float64) / third.astype(np.float64))
    return first.astype(np.float64) * second.astype(np.float64) / third.astype(np.float64)

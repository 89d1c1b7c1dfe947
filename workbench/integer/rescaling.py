"""The same numbers as codes of another scale, and joins of codes that have different scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import AccumulatorOverflowError, IntegerError, SemanticsError
from workbench.integer.accumulator import needed_bits
from workbench.integer.arguments import (
    as_array,
    check_factors,
    check_zero_point,
    clamp_limits,
    code_type,
    one_integer,
    real_numbers,
)
from workbench.integer.fixed_point import effective_scale
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.watch import Observation, is_watched, merged, note


def rescale_codes(
    x: np.ndarray,
    *,
    input_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    dtype: Any = None,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return the same real numbers as codes of another scale, zero point or type (TensorFlow Lite's QUANTIZE).

    ``requantize(x - input_zero_point, input_scale / output_scale)``; ``onnxruntime``, which dequantizes and quantizes
    in float32: ``rint((x - input_zero_point) * input_scale / output_scale)``, two roundings.

    Args:
        x: int8, uint8, int16 or int32.
        input_scale: real scale of ``x``; with ``output_scale``, or give ``multiplier``.
        output_scale: real scale of the output.
        multiplier: one ready multiplier in the runtime's convention instead of scales (not for ``onnxruntime``).
        shift: its shift.
        input_zero_point: code of 0 in ``x``.
        output_zero_point: code of 0 in the output.
        dtype: integer type of the output; that of ``x`` by default.
        low: smallest output code.
        high: largest output code.
        semantics: whose rounding.

    Raises:
        IntegerError: types, scales or zero points do not fit.
        SemanticsError: a factor outside the runtime's specification.
        AccumulatorOverflowError: an int32 code less its zero point beyond 32 bits.
    """
    named = outside_linear(semantics)
    x = as_array(x, "the input")
    code_type(x.dtype)
    check_zero_point(input_zero_point, x.dtype)
    kind = x.dtype if dtype is None else code_type(dtype)
    if not check_factors(multiplier, shift, input_scale, output_scale):
        source, _, target = single_scales(input_scale, 1.0, output_scale)
    else:
        source = target = np.float32(1)
    if named.rounding == "float32":
        if multiplier is not None:
            message = "onnxruntime rescales codes by two scales, not by one multiplier: give the scales"
            raise SemanticsError(message)
        check_zero_point(output_zero_point, kind)
        real = (x.astype(np.float32) - np.float32(input_zero_point)) * source / target
        return rounded(np.rint(real) + np.float32(output_zero_point), kind, low, high, "rescale")
    real = None if multiplier is not None else effective_scale(source, 1.0, target, named)
    return requantize(
        minus(x, input_zero_point),
        multiplier,
        shift,
        scale=real,
        zero_point=output_zero_point,
        dtype=kind,
        low=low,
        high=high,
        semantics=named,
        operator="rescale",
    )


def concat(
    inputs: Sequence[np.ndarray],
    *,
    input_scales: Sequence[Any] | None = None,
    output_scale: Any = None,
    input_zero_points: Sequence[int] | None = None,
    output_zero_point: int = 0,
    axis: int = -1,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Join tensors of codes along an axis; inputs whose scale or zero point is not the output's are rescaled first.

    TensorFlow Lite's 8-bit concatenation only copies; where scales differ its converter puts a QUANTIZE before it,
    which is what ``rescale_codes`` computes here. ``onnxruntime`` (QLinearConcat) rescales by a table of its own.

    Args:
        inputs: tensors of one integer type, int8, uint8 or int16.
        input_scales: their real scales; none where they all have the output's.
        output_scale: real scale of the output.
        input_zero_points: their codes of 0; none where all are the output's.
        output_zero_point: code of 0 in the output.
        axis: along which axis.
        semantics: whose rounding, where something must be rescaled.

    Raises:
        IntegerError: nothing to join, types or shapes that do not fit, or as many scales as there are no inputs.
    """
    tensors = [as_array(each, "an input") for each in _each(inputs)]
    if not tensors or len({each.dtype for each in tensors}) != 1 or len({each.ndim for each in tensors}) != 1:
        message = f"tensors of one integer type and number of axes are joined, not {[each.dtype for each in tensors]}"
        raise IntegerError(message)
    kind = code_type(tensors[0].dtype)
    zeros = [output_zero_point] * len(tensors) if input_zero_points is None else _each(input_zero_points)
    scales = [None] * len(tensors) if input_scales is None else _each(input_scales)
    known = [scale is not None for scale in (*scales, output_scale)]
    if len(zeros) != len(tensors) or len(scales) != len(tensors) or any(known) != all(known):
        message = f"{len(tensors)} tensors are joined: give as many scales and zero points, and one output scale"
        raise IntegerError(message)
    check_zero_point(output_zero_point, kind)
    for zero in zeros:
        check_zero_point(zero, kind)
    if all(known):
        scales, output_scale = [_stored(scale) for scale in scales], _stored(output_scale)
    axis = one_integer(axis, "an axis to join along", -tensors[0].ndim, tensors[0].ndim - 1)
    parts = []
    with merged("concat"):
        for each, scale, zero in zip(tensors, scales, zeros, strict=True):
            same = scale is None or scale == output_scale
            if same and int(zero) == int(output_zero_point):
                parts.append(each)
                continue
            parts.append(
                rescale_codes(
                    each,
                    input_scale=1.0 if scale is None else scale,
                    output_scale=1.0 if scale is None else output_scale,
                    input_zero_point=int(zero),
                    output_zero_point=output_zero_point,
                    semantics=semantics,
                )
            )
        try:
            joined = np.concatenate(parts, axis=axis)
        except ValueError:
            message = f"shapes {[each.shape for each in tensors]} do not join along axis {axis}"
            raise IntegerError(message) from None
        if is_watched():
            note(Observation("concat", outputs=int(joined.size)))
    return joined


def _each(values: Any) -> list[Any]:
    try:
        return [] if isinstance(values, str | bytes) else list(values)
    except TypeError:
        return []


def _stored(scale: Any) -> float:
    return float(effective_scale(*single_scales(scale, 1.0, 1.0), "litert-reference"))


def single_scales(first: Any, second: Any, third: Any) -> tuple[np.float32, np.float32, np.float32]:
    """Return three scales as float32 numbers.

    Raises:
        IntegerError: one is missing, or is not one number.
    """
    given = [first, second, third]
    scales = [real_numbers(scale, "a scale") for scale in given if scale is not None]
    if len(scales) < len(given) or any(scale.size != 1 for scale in scales):
        message = "give one real scale of every input and of the output, or ready multipliers and shifts"
        raise IntegerError(message)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        one, other, out = (np.float32(np.reshape(scale, ())) for scale in scales)
    return one, other, out


def minus(codes: np.ndarray, zero: int) -> np.ndarray:
    """Return codes minus their zero point, in int32.

    Raises:
        AccumulatorOverflowError: a difference of int32 codes beyond 32 bits.
    """
    if codes.dtype.itemsize < 4:
        return codes.astype(np.int32) - np.int32(zero)
    return within_32_bits(codes.astype(np.int64) - int(zero), "a code less its zero point")


def within_32_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Return int64 numbers as int32.

    Raises:
        AccumulatorOverflowError: one of them needs more bits.
    """
    needed = needed_bits(int(values.min(initial=0)), int(values.max(initial=0)))
    if needed > 32:
        message = (
            f"{name} needs {needed} bits and the runtimes hold it in 32: take smaller zero points or narrower codes"
        )
        raise AccumulatorOverflowError(message)
    return values.astype(np.int32)


def rounded(real: np.ndarray, kind: np.dtype, low: int | None, high: int | None, name: str) -> np.ndarray:
    """Return real codes rounded half to even and clamped, and note what left the type.

    Raises:
        IntegerError: the clamp does not lie within the type.
    """
    limits = np.iinfo(kind)
    floor, ceiling = clamp_limits(low, high, kind)
    whole = np.rint(real)
    if is_watched():
        left = int(np.count_nonzero((whole < limits.min) | (whole > limits.max)))
        note(Observation(name, outputs=int(whole.size), saturated=left))
    return np.clip(whole, floor, ceiling).astype(kind)

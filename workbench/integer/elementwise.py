"""Sums, differences and products of codes that have different scales, each by its runtime's own recipe."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.arguments import as_array, check_factors, check_zero_point, code_type
from workbench.integer.fixed_point import check_multiplier, effective_scale, quantize_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.rescaling import minus, rounded, single_scales, within_32_bits
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.watch import merged

#: TensorFlow Lite shifts the inputs of an addition left by so many bits before it rescales them.
LEFT_SHIFT = {1: 20, 2: 15}


def add(
    a: np.ndarray,
    b: np.ndarray,
    *,
    a_scale: Any = None,
    b_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    output_zero_point: int = 0,
    dtype: Any = None,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return ``a + b`` of two tensors of codes, broadcast.

    * ``tflm``, ``litert-reference`` and ``tosa-*``, with L = 20 (15 for int16) and t = 2 max(a_scale, b_scale):
      ``rescale(rescale((a - a_zero_point) << L, a_scale / t) + rescale((b - b_zero_point) << L, b_scale / t),
      t / (2**L output_scale)) + output_zero_point``. TOSA has no such shift of its own: its first two factors are
      ``2**L a_scale / t`` and ``2**L b_scale / t``.
    * ``onnxruntime`` in float32 with p = a_scale / output_scale and q = b_scale / output_scale:
      ``rint(fma(a, p, fma(b, q, output_zero_point - fma(p, a_zero_point, q b_zero_point))))``, as its x86 kernels do.

    Args:
        a: int8, uint8 or int16.
        b: the same type; the shapes broadcast.
        a_scale: real scale of ``a``; with ``b_scale`` and ``output_scale``, or give ``multiplier``.
        b_scale: real scale of ``b``.
        output_scale: real scale of the output.
        multiplier: what ``addition_multipliers`` prepares, instead of scales: for a, b and the output (for
            ``onnxruntime``: p and q).
        shift: their shifts.
        a_zero_point: code of 0 in ``a``.
        b_zero_point: code of 0 in ``b``.
        output_zero_point: code of 0 in the output.
        dtype: integer type of the output; that of the inputs by default.
        low: smallest output code (a fused activation).
        high: largest output code.
        semantics: whose recipe.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        SemanticsError: the runtime has no addition of these types.
        AccumulatorOverflowError: a sum of rescaled operands beyond 32 bits (only ready multipliers can do that).
    """
    return _sum(
        a,
        b,
        1,
        (a_scale, b_scale, output_scale),
        (multiplier, shift),
        (a_zero_point, b_zero_point, output_zero_point),
        dtype,
        low,
        high,
        semantics,
    )


def sub(
    a: np.ndarray,
    b: np.ndarray,
    *,
    a_scale: Any = None,
    b_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    output_zero_point: int = 0,
    dtype: Any = None,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return ``a - b`` by the recipe of ``add``: the second rescaled operand is subtracted.

    Args:
        a: see ``add``, as are all others.
        b: see there.
        a_scale: see there.
        b_scale: see there.
        output_scale: see there.
        multiplier: see there.
        shift: see there.
        a_zero_point: see there.
        b_zero_point: see there.
        output_zero_point: see there.
        dtype: see there.
        low: see there.
        high: see there.
        semantics: see there; ``onnxruntime`` has no quantized subtraction.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        SemanticsError: the runtime has no subtraction of these types.
        AccumulatorOverflowError: see ``add``.
    """
    if outside_linear(semantics).rounding == "float32":
        message = "onnxruntime has no quantized subtraction: take another semantics, or negate the scale's operand"
        raise SemanticsError(message)
    return _sum(
        a,
        b,
        -1,
        (a_scale, b_scale, output_scale),
        (multiplier, shift),
        (a_zero_point, b_zero_point, output_zero_point),
        dtype,
        low,
        high,
        semantics,
    )


def addition_multipliers(
    a_scale: Any, b_scale: Any, output_scale: Any, semantics: Semantics | str = "litert-reference", dtype: Any = np.int8
) -> tuple[np.ndarray, np.ndarray]:
    """Return the multipliers and shifts that ``add`` and ``sub`` need: for a, b and the output.

    Args:
        a_scale: float32 number above 0.
        b_scale: float32 number above 0.
        output_scale: float32 number above 0.
        semantics: whose recipe; for ``onnxruntime`` two float32 factors, shifts 0.
        dtype: integer type of the operands.

    Raises:
        SemanticsError: a scale is not a finite number above 0, or too far from the others for the runtime.
    """
    named = outside_linear(semantics)
    first, second, third = (
        float(effective_scale(scale, 1.0, 1.0, "litert-reference"))
        for scale in single_scales(a_scale, b_scale, output_scale)
    )
    if named.rounding == "float32":
        ratios = np.array([first, second], dtype=np.float32) / np.float32(third)
        return quantize_multiplier(ratios, named)
    left = LEFT_SHIFT[code_type(dtype).itemsize]
    twice = 2.0 * max(first, second)
    # TensorFlow Lite shifts the codes themselves; TOSA's factors hold the shift.
    lift = 2.0**left if named.shift_is_right else 1.0
    return quantize_multiplier(
        np.array([lift * first / twice, lift * second / twice, twice / (2.0**left * third)]), named
    )


def mul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    a_scale: Any = None,
    b_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    output_zero_point: int = 0,
    dtype: Any = None,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return the elementwise product of two tensors of codes, broadcast.

    ``requantize((a - a_zero_point) * (b - b_zero_point), a_scale * b_scale / output_scale)``; ``litert-reference``
    computes that factor in float32, ``tflm`` and ``tosa-*`` in float64. ``onnxruntime``, all in float32, rounds after
    adding the zero point: ``rint(product * factor + output_zero_point)``.

    Args:
        a: int8, uint8 or int16.
        b: the same type; the shapes broadcast.
        a_scale: real scale of ``a``; with ``b_scale`` and ``output_scale``, or give ``multiplier``.
        b_scale: real scale of ``b``.
        output_scale: real scale of the output.
        multiplier: one ready multiplier in the runtime's convention instead of scales.
        shift: its shift.
        a_zero_point: code of 0 in ``a``.
        b_zero_point: code of 0 in ``b``.
        output_zero_point: code of 0 in the output.
        dtype: integer type of the output; that of the inputs by default.
        low: smallest output code (a fused activation).
        high: largest output code.
        semantics: whose recipe.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        SemanticsError: the runtime has no product of these types.
        AccumulatorOverflowError: a product of int16 codes beyond 32 bits (only zero points other than 0 do that).
    """
    named = outside_linear(semantics)
    a, b = _operands(a, b, (a_zero_point, b_zero_point), named, "mul")
    kind = a.dtype if dtype is None else code_type(dtype)
    if not check_factors(multiplier, shift, a_scale, b_scale, output_scale):
        single = named.name in {"litert-reference", "tflite-single", "onnxruntime"}
        scales = single_scales(a_scale, b_scale, output_scale)
        real = effective_scale(*scales, "onnxruntime" if single else named)
        multiplier, shift = quantize_multiplier(real, named)
    elif np.size(multiplier) != 1 or (shift is not None and np.size(shift) != 1):
        message = "a product of codes takes one multiplier and one shift"
        raise IntegerError(message)
    product = within_32_bits(minus(a, a_zero_point).astype(np.int64) * minus(b, b_zero_point), "a product of mul")
    if named.rounding == "float32":
        check_zero_point(output_zero_point, kind)
        check_multiplier(multiplier, 0 if shift is None else shift, named)
        # Two roundings: x86's baseline kernel has no fused multiply-add.
        real = product.astype(np.float32) * np.float32(np.reshape(multiplier, ())) + np.float32(output_zero_point)
        return rounded(real, kind, low, high, "mul")
    return requantize(
        product,
        multiplier,
        shift,
        zero_point=output_zero_point,
        dtype=kind,
        low=low,
        high=high,
        semantics=named,
        operator="mul",
    )


def _sum(  # noqa: PLR0917
    a: np.ndarray,
    b: np.ndarray,
    sign: int,
    scales: tuple[Any, Any, Any],
    ready: tuple[Any, Any],
    zeros: tuple[int, int, int],
    dtype: Any,
    low: int | None,
    high: int | None,
    semantics: Semantics | str,
) -> np.ndarray:
    named = outside_linear(semantics)
    name = "add" if sign > 0 else "sub"
    a, b = _operands(a, b, zeros[:2], named, name)
    kind = a.dtype if dtype is None else code_type(dtype)
    multiplier, shift = ready
    if not check_factors(multiplier, shift, *scales):
        multiplier, shift = addition_multipliers(*single_scales(*scales), named, a.dtype)
    multiplier = as_array(multiplier, "a multiplier")
    shift = np.zeros(multiplier.shape, dtype=np.int32) if shift is None else as_array(shift, "a shift")
    count = 2 if named.rounding == "float32" else 3
    if multiplier.shape != (count,) or shift.shape != (count,):
        message = f"{name} in {named} takes {count} multipliers and shifts, not {multiplier.shape} and {shift.shape}"
        raise IntegerError(message)
    if named.rounding == "float32":
        check_multiplier(multiplier, shift, named)
        check_zero_point(zeros[2], kind)
        return rounded(_float_sum(a, b, multiplier.astype(np.float32), zeros), kind, low, high, name)
    left = 0 if named.shift_is_right else LEFT_SHIFT[a.dtype.itemsize]
    with merged(name):
        first, second = (
            requantize(
                minus(codes, zero) << np.int32(left),
                multiplier[place],
                shift[place],
                dtype=np.int32,
                semantics=named,
                operator=name,
            )
            for place, (codes, zero) in enumerate(((a, zeros[0]), (b, zeros[1])))
        )
        return requantize(
            within_32_bits(first.astype(np.int64) + sign * second.astype(np.int64), f"a sum of {name}"),
            multiplier[2],
            shift[2],
            zero_point=zeros[2],
            dtype=kind,
            low=low,
            high=high,
            semantics=named,
            operator=name,
        )


def _operands(
    a: np.ndarray, b: np.ndarray, zeros: tuple[int, int], named: Semantics, name: str
) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_array(a, "an operand"), as_array(b, "an operand")
    if a.dtype != b.dtype or a.dtype.itemsize not in LEFT_SHIFT or a.dtype.kind not in "iu" or a.dtype == np.uint16:
        message = f"{name} takes two tensors of one type, int8, uint8 or int16, not {a.dtype} and {b.dtype}"
        raise IntegerError(message)
    for codes, zero in zip((a, b), zeros, strict=True):
        check_zero_point(zero, codes.dtype)
    lacking = {"onnxruntime": np.int16, "tflm": np.uint8}.get(named.name)
    if lacking is not None and a.dtype == lacking:
        message = f"{named} has no {name} of {a.dtype}: its types are {'8 bits' if lacking is np.int16 else 'signed'}"
        raise SemanticsError(message)
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        message = f"shapes {a.shape} and {b.shape} do not broadcast"
        raise IntegerError(message) from None
    return a, b


def _float_sum(a: np.ndarray, b: np.ndarray, ratios: np.ndarray, zeros: tuple[int, int, int]) -> np.ndarray:
    first, second = (a, zeros[0], ratios[0]), (b, zeros[1], ratios[1])
    if _is_spread(a.shape, b.shape):
        # The kernel wants the operand that is one number for a whole run of the other as its second one.
        first, second = second, first
    (x, x_zero, x_ratio), (y, y_zero, y_ratio) = first, second
    fixed = np.float32(zeros[2]) - _fused(x_ratio, x_zero, y_ratio * np.float32(y_zero))
    return _fused(x, x_ratio, _fused(y, y_ratio, fixed))


def _is_spread(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    length = max(len(a), len(b))
    for mine, other in zip(((1,) * (length - len(a)) + a)[::-1], ((1,) * (length - len(b)) + b)[::-1], strict=True):
        if mine != 1 or other != 1:
            return mine == 1
    return False


def _fused(x: Any, factor: Any, addend: Any) -> np.ndarray:
    # A float32 fused multiply-add of an 8-bit code: the product is exact in float64, and so is the sum as long as the
    # two lie within 2**20 of each other; beyond, the smaller one is far below half a step of the output.
    exact = np.asarray(x, dtype=np.float64) * np.float64(factor) + np.asarray(addend, dtype=np.float64)
    return exact.astype(np.float32)

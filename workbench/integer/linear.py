"""Linear layers and matrix products in integers: exact sums first, then one requantization."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.accumulator import Accumulator, needed_bits, worst_case
from workbench.integer.arguments import check_factors, real_numbers
from workbench.integer.fixed_point import effective_scale
from workbench.integer.operands import check_layer, check_operand
from workbench.integer.requantize import Rounding, prepare_rounding, requantize
from workbench.integer.semantics import Semantics, as_semantics, outside_linear
from workbench.integer.watch import Observation, is_watched, note
from workbench.kernels.integer_gemm import integer_matmul, row_sums
from workbench.kernels.linear_codes import linear_codes
from workbench.kernels.narrow import narrow_dot


def accumulate(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    input_zero_point: int = 0,
    weight_zero_point: Any = 0,
    accumulator: Accumulator | str | None = None,
    operator: str = "accumulate",
) -> np.ndarray:
    """Return ``bias[n] + sum_k (x[..., k] - input_zero_point) * (weight[n, k] - weight_zero_point[n])``.

    Args:
        x: int8, uint8 or int16 (..., depth).
        weight: int8, uint8 or int16 (outputs, depth).
        bias: int32 (int64 for int16 operands) (outputs,).
        input_zero_point: code of 0 in ``x``.
        weight_zero_point: code of 0 in ``weight``: one, or one per output.
        accumulator: e.g. ``"int16:wrap"``; by default 32 bits for 8-bit operands and 62 for int16, refusing overflow.
        operator: the name that ``watch`` shows.

    Returns:
        int32 (..., outputs) where both operands have 8 bits and the accumulator at most 32, else int64.

    Raises:
        IntegerError: types, shapes or zero points do not fit.
        AccumulatorOverflowError: a sum does not fit, and the accumulator neither wraps nor saturates.
    """
    layer = check_layer(x, weight, bias, input_zero_point, weight_zero_point, accumulator)
    rows, weight, zeros, start, chosen, rough = (
        layer.rows,
        layer.weight,
        layer.zeros,
        layer.start,
        layer.chosen,
        layer.rough,
    )
    wide, reach, narrow, worst = layer.wide, layer.reach, chosen.overflow != "error", 0
    outputs, result = weight.shape[0], np.int64 if wide or chosen.bits > 32 else np.int32
    # The cheap bound settles nearly all layers; the exact worst case is computed where it does not, or is shown.
    if is_watched() or narrow or rough > chosen.bits:
        worst = needed_bits(*worst_case(weight, *reach, weight_zero_point=zeros, bias=start))
    overflows = 0
    if narrow and worst > chosen.bits:
        sums, overflows, low, high = narrow_dot(
            rows,
            np.ascontiguousarray(weight),
            int(input_zero_point),
            zeros,
            start,
            chosen.bits,
            saturate=chosen.overflow == "saturate",
        )
        observed = needed_bits(low, high)
    else:
        sums = _exact_sums(
            rows, weight, int(input_zero_point), zeros, start, safe=min(rough, worst or rough) <= 32 and not wide
        )
        observed = needed_bits(int(sums.min(initial=0)), int(sums.max(initial=0))) if worst else 0
        if worst > chosen.bits and observed > chosen.bits:
            message = (
                f"a sum of {operator} needs {observed} bits and the accumulator has {chosen.bits}: "
                f"use a wider one, or say how it overflows, e.g. 'int{chosen.bits}:wrap'"
            )
            raise AccumulatorOverflowError(message)
    if is_watched():
        note(
            Observation(
                operator,
                outputs=int(sums.size),
                accumulator_bits=chosen.bits,
                worst_case_bits=worst,
                observed_bits=observed,
                overflows=overflows,
            )
        )
    return sums.astype(result, copy=False).reshape(*layer.lead, outputs)


def linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    input_scale: Any = None,
    weight_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    input_zero_point: int = 0,
    weight_zero_point: Any = 0,
    output_zero_point: int = 0,
    dtype: Any = np.int8,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
    accumulator: Accumulator | str | None = None,
) -> np.ndarray:
    """Return ``requantize(accumulate(x, weight, bias))``: a fully-connected layer in integers.

    real output ~ output_scale * (code - output_zero_point), the weight's scale one number or one per output.

    Args:
        x: int8, uint8 or int16 (..., depth).
        weight: int8, uint8 or int16 (outputs, depth).
        bias: int32 or int64 (outputs,) with scale input_scale * weight_scale and zero point 0.
        input_scale: real scale of the input; with ``weight_scale`` and ``output_scale``, or give ``multiplier``.
        weight_scale: one, or one per output.
        output_scale: real scale of the output.
        multiplier: ready multipliers in the runtime's convention (one, or one per output) instead of scales.
        shift: their shifts.
        input_zero_point: code of 0 in ``x``.
        weight_zero_point: code of 0 in ``weight``: one, or one per output.
        output_zero_point: code of 0 in the output.
        dtype: integer type of the output.
        low: smallest output code (an activation fused into the layer).
        high: largest output code.
        semantics: whose rounding.
        accumulator: see ``accumulate``.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        AccumulatorOverflowError: see ``accumulate``.
    """
    layer = check_layer(x, weight, bias, input_zero_point, weight_zero_point, accumulator)
    check_factors(multiplier, shift, input_scale, weight_scale, output_scale)
    sums = None
    if not layer.fits:
        sums = accumulate(
            x,
            weight,
            bias,
            input_zero_point=input_zero_point,
            weight_zero_point=weight_zero_point,
            accumulator=accumulator,
            operator="linear",
        )
    # LiteRT's layer of int16 weights is another kernel than that of int8 weights.
    named = outside_linear(semantics) if np.asarray(weight).dtype == np.int16 else as_semantics(semantics)
    scale = rescaling(
        input_scale, weight_scale, output_scale, multiplier, np.shape(weight)[0], named, product="float64"
    )
    if sums is None:
        rounding = prepare_rounding(
            named,
            multiplier,
            shift,
            scale=scale,
            zero_point=output_zero_point,
            dtype=dtype,
            low=low,
            high=high,
            wide=layer.wide,
        )
        offset = _offset(layer.weight, layer.input_zero, layer.zeros, layer.start)
        codes = _codes(layer.rows, layer.weight, offset, rounding, layer.zeros)
        return codes.reshape(*layer.lead, codes.shape[-1])
    return requantize(
        sums,
        multiplier,
        shift,
        scale=scale,
        zero_point=output_zero_point,
        dtype=dtype,
        low=low,
        high=high,
        semantics=named,
        operator="linear",
    )


def matmul(
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
    transpose_b: bool = False,
    dtype: Any = np.int8,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
    accumulator: Accumulator | str | None = None,
) -> np.ndarray:
    """Return the batched product ``a @ b`` (attention's scores and contexts) in integers.

    Args:
        a: int8, uint8 or int16 (..., rows, depth).
        b: the same types (..., depth, columns), or (..., columns, depth) with ``transpose_b``; leading axes broadcast.
        a_scale: real scale of ``a``; with ``b_scale`` and ``output_scale``, or give ``multiplier``.
        b_scale: real scale of ``b``.
        output_scale: real scale of the output.
        multiplier: a ready multiplier instead of scales.
        shift: its shift.
        a_zero_point: code of 0 in ``a``.
        b_zero_point: code of 0 in ``b``.
        output_zero_point: code of 0 in the output.
        transpose_b: whether the depth is the last axis of ``b``.
        dtype: integer type of the output.
        low: smallest output code.
        high: largest output code.
        semantics: whose rounding.
        accumulator: see ``accumulate``.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        AccumulatorOverflowError: see ``accumulate``.
    """
    a, b = check_operand(a, "a"), check_operand(b, "b")
    check_factors(multiplier, shift, a_scale, b_scale, output_scale)
    if a.ndim < 2 or b.ndim < 2:
        message = f"a matrix product takes (..., rows, depth) and (..., depth, columns), not {a.shape} and {b.shape}"
        raise IntegerError(message)
    right = b if transpose_b else np.swapaxes(b, -1, -2)
    try:
        lead = np.broadcast_shapes(a.shape[:-2], right.shape[:-2])
    except ValueError:
        message = f"the leading axes of {a.shape} and {b.shape} do not broadcast"
        raise IntegerError(message) from None
    count, shape = math.prod(lead), (*lead, a.shape[-2], right.shape[-2])
    left = np.broadcast_to(a, (*lead, *a.shape[-2:])).reshape(count, *a.shape[-2:])
    right = np.broadcast_to(right, (*lead, *right.shape[-2:])).reshape(count, *right.shape[-2:])
    named = outside_linear(semantics)
    # LiteRT takes the product of the two scales in float32, TensorFlow Lite Micro in float64 (both measured).
    product = "float32" if named.name in {"litert-reference", "tflite-single"} else "float64"
    layer = check_layer(left[0], right[0], None, a_zero_point, b_zero_point, accumulator) if count else None
    if layer is not None and layer.fits:
        scale = rescaling(a_scale, b_scale, output_scale, multiplier, 1, named, product=product)
        rounding = prepare_rounding(
            named,
            multiplier,
            shift,
            scale=scale,
            zero_point=output_zero_point,
            dtype=dtype,
            low=low,
            high=high,
            wide=layer.wide,
        )
        offset = _offset(right, layer.input_zero, layer.zeros, layer.start)
        return _codes(left, right, offset, rounding, layer.zeros).reshape(shape)
    sums = [
        accumulate(
            one,
            other,
            input_zero_point=a_zero_point,
            weight_zero_point=b_zero_point,
            accumulator=accumulator,
            operator="matmul",
        )
        for one, other in zip(left, right, strict=True)
    ]
    wide = a.dtype.itemsize > 1 or b.dtype.itemsize > 1
    stacked = np.stack(sums) if sums else np.empty(shape, dtype=np.int64 if wide else np.int32)
    return requantize(
        stacked.reshape(shape),
        multiplier,
        shift,
        scale=rescaling(a_scale, b_scale, output_scale, multiplier, 1, named, product=product),
        zero_point=output_zero_point,
        dtype=dtype,
        low=low,
        high=high,
        semantics=named,
        operator="matmul",
    )


def rescaling(  # noqa: PLR0917
    input_scale: Any,
    weight_scale: Any,
    output_scale: Any,
    multiplier: Any,
    outputs: int,
    semantics: Semantics | str,
    *,
    product: str,
) -> np.ndarray | None:
    """Return the real factor of a layer, or None where ready multipliers were given.

    Args:
        input_scale: float32 number.
        weight_scale: one, or one per output.
        output_scale: float32 number.
        multiplier: what the caller got: None, or ready multipliers (then all scales must be None).
        outputs: number of output channels.
        semantics: whose arithmetic (see ``effective_scale``).
        product: ``"float32"`` where one weight scale's product with the input scale is rounded to float32 first.

    Raises:
        IntegerError: some but not all scales, scales and multipliers both, or as many scales as nothing has.
    """
    named = as_semantics(semantics)
    given = [scale is not None for scale in (input_scale, weight_scale, output_scale)]
    if multiplier is not None:
        if any(given):
            message = "give either real scales or ready multipliers, not both"
            raise IntegerError(message)
        return None
    if not all(given):
        message = "give the scales of input, weight and output, or ready multipliers and shifts"
        raise IntegerError(message)
    input_scale, weight_scale, output_scale = (
        real_numbers(scale, "a scale") for scale in (input_scale, weight_scale, output_scale)
    )
    sizes = [scale.size for scale in (input_scale, weight_scale, output_scale)]
    if sizes[0] != 1 or sizes[1] not in {1, outputs} or sizes[2] != 1:
        message = f"one weight scale or one per output ({outputs}), one input and one output scale"
        raise IntegerError(message)
    alone = sizes[1] == 1
    scale = effective_scale(
        np.reshape(input_scale, ()),
        weight_scale,
        np.reshape(output_scale, ()),
        named,
        product=product if alone else "float64",
    )
    return np.atleast_1d(scale)


def _offset(weight: np.ndarray, input_zero: int, zeros: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return what bias and zero points add to every row: int64 (..., outputs)."""
    offset = np.broadcast_to(start, weight.shape[:-1])
    if input_zero:
        offset = offset - input_zero * row_sums(weight) + zeros * input_zero * weight.shape[-1]
    return offset


def _codes(
    rows: np.ndarray, weight: np.ndarray, offset: np.ndarray, rounding: Rounding, zeros: np.ndarray
) -> np.ndarray:
    """Return a layer's codes without keeping its sums.

    Raises:
        IntegerError: more multipliers than outputs.
    """
    outputs = weight.shape[-2]
    if rounding.multiplier.size not in {1, outputs}:
        message = f"{rounding.multiplier.size} multipliers for {outputs} channels along axis -1"
        raise IntegerError(message)
    codes, _, _ = linear_codes(rows, weight, offset, *rounding, weight_zero=zeros if zeros.any() else None)
    return codes


def _exact_sums(
    rows: np.ndarray, weight: np.ndarray, input_zero: int, zeros: np.ndarray, start: np.ndarray, *, safe: bool
) -> np.ndarray:
    """Return the sums in int64, or in int32 where every corrected sum is known to fit.

    sum (x - zx)(w - zw) = sum x w - zx sum w - zw sum x + depth zx zw; in modular arithmetic the detour over the raw
    products changes nothing, so int32 is exact whenever the result fits.
    """
    kind = np.int32 if safe else np.int64
    products = integer_matmul(rows, weight).astype(kind, copy=False)
    if not safe and rows.dtype.itemsize == weight.dtype.itemsize == 1 and rows.shape[1] >= 1 << 15:
        # Raw int32 products of 8-bit operands can wrap from this depth on.
        products = rows.astype(np.int64) @ weight.astype(np.int64).T
    with np.errstate(over="ignore"):
        offset = start.astype(kind)
        if input_zero:
            offset = offset - kind(input_zero) * row_sums(weight).astype(kind)
        if zeros.any():
            offset = offset + (zeros * input_zero * rows.shape[1]).astype(kind)
            products = products - row_sums(rows).astype(kind)[:, None] * zeros.astype(kind)
        if products.dtype != kind or offset.any():
            products = products + offset
    return products

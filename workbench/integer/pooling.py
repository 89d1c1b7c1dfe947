"""Pooling in integers: averages and maxima over windows, and the mean over whole axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.arguments import check_factors, check_word, check_zero_point, clamp_limits, one_integer, shown
from workbench.integer.convolution import geometry, pair
from workbench.integer.fixed_point import effective_scale, quantize_multiplier
from workbench.integer.linear import check_operand
from workbench.integer.requantize import requantize
from workbench.integer.rescaling import single_scales, within_32_bits
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.watch import Observation, is_watched, note
from workbench.kernels.windows import pool_float_sums, pool_maxima, pool_sums


def average_pool2d(
    x: np.ndarray,
    window: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Any = 0,
    input_scale: Any = None,
    output_scale: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int | None = None,
    count_padding: bool = False,
    layout: str = "NHWC",
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return the average of every window, over the cells that lie inside the image.

    With s the sum of the codes inside and n how many there are:

    * ``tflm``, ``litert-reference``: ``(s + n / 2) / n`` for s > 0, else ``(s - n / 2) / n``, divisions in integers
      towards zero: half away from the code 0, not from the real 0. Input and output share scale and zero point.
    * ``tosa-*``: ``rescale(s - n * input_zero_point, reciprocal(n)) + output_zero_point`` with
      ``reciprocal(n) = ((2**30 + 1) * 2**k / n, 30 + k)``, ``2**k`` the power of two at or above n. One scale.
    * ``onnxruntime`` (QLinearAveragePool) in float32, each operation rounded: the sum of
      ``input_scale * (code - input_zero_point)`` cell after cell, divided by n and by output_scale, plus
      output_zero_point, rounded half to even.

    Args:
        x: int8, uint8 or int16 (batch, height, width, channels), or (batch, channels, height, width) in ``NCHW``.
        window: rows and columns, or one number for both.
        stride: steps between windows; the window by default.
        padding: as in ``conv2d``; padded cells count for nothing.
        input_scale: real scale of the input; needed for ``onnxruntime`` only.
        output_scale: real scale of the output; that of the input by default.
        input_zero_point: code of 0 in ``x``.
        output_zero_point: code of 0 in the output; that of the input by default.
        count_padding: divide by the whole window's size instead of n (``onnxruntime`` only).
        layout: ``NHWC`` or ``NCHW``.
        low: smallest output code (a fused activation).
        high: largest output code.
        semantics: whose recipe.

    Raises:
        IntegerError: types, shapes or geometry do not fit.
        SemanticsError: the runtime cannot change the scale here, or has no pool of this type.
        AccumulatorOverflowError: a window's sum beyond 32 bits.
    """
    named = outside_linear(semantics)
    x = _image(x, layout)
    output_zero = input_zero_point if output_zero_point is None else output_zero_point
    check_zero_point(input_zero_point, x.dtype)
    check_zero_point(output_zero, x.dtype)
    sizes, steps, output, first = _place(x, window, stride, padding)
    _check_type(x, named)
    given = [scale for scale in (input_scale, output_scale) if scale is not None]
    stored = [float(effective_scale(*single_scales(scale, 1.0, 1.0), "litert-reference")) for scale in given]
    same = output_scale is None or (len(stored) == 2 and stored[0] == stored[1])
    if named.rounding == "float32":
        if input_scale is None:
            message = "onnxruntime averages real numbers: give input_scale"
            raise SemanticsError(message)
        target = input_scale if output_scale is None else output_scale
        counts = _counts(x, sizes, output, steps, first)
        divisor = np.full_like(counts, sizes[0] * sizes[1]) if count_padding else counts
        sums = pool_float_sums(x, float(np.float32(input_scale)), int(input_zero_point), sizes, output, steps, first)
        mean = sums / divisor[None, :, :, None].astype(np.float32)
        real = mean / np.float32(target) + np.float32(output_zero)
        return _finish(np.rint(real), x.dtype, (low, high), layout, "average_pool2d")
    if not same or count_padding:
        what = "counts padded cells" if count_padding else "changes the scale"
        message = f"no average pool of {named} {what}: rescale the codes before or after it"
        raise SemanticsError(message)
    sums, counts = pool_sums(x, sizes, output, steps, first)
    counts = counts[None, :, :, None]
    within_32_bits(sums, "a sum of average_pool2d")
    if named.shift_is_right:
        centred = sums - counts * int(input_zero_point)
        values = _reciprocal(within_32_bits(centred, "a sum of average_pool2d").astype(np.int64), counts) + int(
            output_zero
        )
    else:
        if int(output_zero) != int(input_zero_point):
            message = f"an average pool of {named} keeps the zero point: rescale the codes before or after it"
            raise SemanticsError(message)
        half = counts // 2
        values = np.where(sums > 0, (sums + half) // counts, -((half - sums) // counts))
    return _finish(values, x.dtype, (low, high), layout, "average_pool2d")


def max_pool2d(
    x: np.ndarray,
    window: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    layout: str = "NHWC",
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return the largest code of every window, over the cells that lie inside the image; scales stay as they are.

    Args:
        x: int8, uint8 or int16 (batch, height, width, channels), or (batch, channels, height, width) in ``NCHW``.
        window: rows and columns, or one number for both.
        stride: steps between windows; the window by default.
        padding: as in ``conv2d``; padded cells are never the largest.
        dilation: steps between the cells of a window; only ``onnxruntime`` dilates pools.
        layout: ``NHWC`` or ``NCHW``.
        low: smallest output code (a fused activation).
        high: largest output code.
        semantics: whose operator; all agree on the result.

    Raises:
        IntegerError: types, shapes or geometry do not fit.
        SemanticsError: the runtime has no such pool.
    """
    named = outside_linear(semantics)
    x = _image(x, layout)
    spread = pair(dilation, "a dilation")
    _check_type(x, named)
    if named.rounding != "float32" and spread != (1, 1):
        message = f"a max pool of {named} has no dilation, only onnxruntime's has"
        raise SemanticsError(message)
    sizes, steps, output, first = _place(x, window, stride, padding, spread)
    return _finish(pool_maxima(x, sizes, output, steps, first, spread), x.dtype, (low, high), layout, "max_pool2d")


def global_average_pool(
    x: np.ndarray,
    *,
    input_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    keep_dims: bool = True,
    layout: str = "NHWC",
    dtype: Any = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return the mean of every channel of every image: ``mean`` over height and width.

    Args:
        x: int8, uint8 or int16 (batch, height, width, channels), or (batch, channels, height, width) in ``NCHW``.
        input_scale: see ``mean``.
        output_scale: see there.
        multiplier: see there.
        shift: see there.
        input_zero_point: see there.
        output_zero_point: see there.
        keep_dims: whether height and width stay, as 1.
        layout: ``NHWC`` or ``NCHW``.
        dtype: see ``mean``.
        semantics: see there.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        SemanticsError: a factor outside the runtime's specification.
    """
    x = _four_axes(x, layout)
    return mean(
        x,
        (1, 2) if layout == "NHWC" else (2, 3),
        input_scale=input_scale,
        output_scale=output_scale,
        multiplier=multiplier,
        shift=shift,
        input_zero_point=input_zero_point,
        output_zero_point=output_zero_point,
        keep_dims=keep_dims,
        dtype=dtype,
        semantics=semantics,
    )


def mean(
    x: np.ndarray,
    axis: int | Sequence[int],
    *,
    input_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    keep_dims: bool = True,
    dtype: Any = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return the mean over axes: ``requantize(sum(x - input_zero_point), input_scale / (output_scale n))``.

    The n cells enter the factor as each runtime does it (``mean_multiplier``): TensorFlow Lite divides the ready
    multiplier of input_scale / output_scale by n in integers, rounding down; ``onnxruntime`` (QLinearGlobalAveragePool)
    computes ``input_scale / (output_scale * n)`` in float32.

    Args:
        x: int8, uint8 or int16.
        axis: one axis or several.
        input_scale: real scale of ``x``; with ``output_scale``, or give ``multiplier``.
        output_scale: real scale of the output.
        multiplier: what ``mean_multiplier`` prepares, instead of scales.
        shift: its shift.
        input_zero_point: code of 0 in ``x``.
        output_zero_point: code of 0 in the output.
        keep_dims: whether the axes stay, as 1.
        dtype: integer type of the output; that of ``x`` by default.
        semantics: whose recipe.

    Raises:
        IntegerError: types, axes, scales or zero points do not fit, or there is nothing to average.
        AccumulatorOverflowError: a sum beyond 32 bits.
        SemanticsError: a factor outside the runtime's specification.
    """
    named = outside_linear(semantics)
    x = check_operand(x, "the input")
    _check_type(x, named)
    check_zero_point(input_zero_point, x.dtype)
    try:
        axes = np.lib.array_utils.normalize_axis_tuple(axis, x.ndim)
    except (TypeError, ValueError, OverflowError):
        message = f"{x.ndim} axes have no axes {shown(axis)}"
        raise IntegerError(message) from None
    count = int(np.prod([x.shape[each] for each in axes], dtype=np.int64))
    if count == 0:
        message = f"there is nothing to average along axes {shown(axis)} of {x.shape}"
        raise IntegerError(message)
    if not check_factors(multiplier, shift, input_scale, output_scale):
        if input_scale is None or output_scale is None:
            message = "give the scales of input and output, or a ready multiplier and shift"
            raise IntegerError(message)
        multiplier, shift = mean_multiplier(input_scale, output_scale, count, named)
    sums = x.sum(axis=axes, keepdims=bool(keep_dims), dtype=np.int64) - count * int(input_zero_point)
    return requantize(
        within_32_bits(sums, f"the sum of {count} cells"),
        multiplier,
        shift,
        zero_point=output_zero_point,
        dtype=x.dtype if dtype is None else dtype,
        semantics=named,
        operator="mean",
    )


def mean_multiplier(
    input_scale: Any, output_scale: Any, count: int, semantics: Semantics | str = "litert-reference"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the multiplier and shift of a mean over ``count`` cells.

    Args:
        input_scale: float32 number above 0.
        output_scale: float32 number above 0.
        count: cells per mean, 1 or more.
        semantics: whose recipe.

    Raises:
        SemanticsError: a scale is not a finite number above 0, or the factor is outside the specification.
    """
    named = outside_linear(semantics)
    input_scale, _, output_scale = single_scales(input_scale, 1.0, output_scale)
    count = one_integer(count, "how many cells a mean has", 1, (1 << 62) - 1)
    real = effective_scale(input_scale, 1.0, output_scale, "litert-reference")
    if named.rounding == "float32":
        factor = np.float32(input_scale) / (np.float32(output_scale) * np.float32(count))
        return quantize_multiplier(factor, named)
    if named.shift_is_right:
        return quantize_multiplier(real / count, named)
    multiplier, exponent = (int(part) for part in quantize_multiplier(real, named))
    # reference/reduce.h, QuantizedMeanOrSum: as many bits as n has are shifted in before the division.
    places = min(count.bit_length() - 1, 32, 31 + exponent)
    return np.array((multiplier << places) // count, dtype=np.int32), np.array(exponent - places, dtype=np.int32)


def _four_axes(x: Any, layout: str) -> np.ndarray:
    x = check_operand(x, "the input")
    check_word(layout, ("NHWC", "NCHW"), "a layout")
    if x.ndim != 4:
        message = f"a pool takes four axes, {layout}, not {x.shape}"
        raise IntegerError(message)
    return x


def _image(x: np.ndarray, layout: str) -> np.ndarray:
    x = _four_axes(x, layout)
    return np.ascontiguousarray(np.moveaxis(x, 1, 3) if layout == "NCHW" else x)


def _place(
    x: np.ndarray, window: Any, stride: Any, padding: Any, dilation: tuple[int, int] = (1, 1)
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    sizes = pair(window, "a window")
    steps = sizes if stride is None else pair(stride, "a stride")
    output, first = geometry(x.shape[1:3], sizes, steps, padding, dilation)
    reach = [(size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=True)]
    ends = [(count - 1) * step - before for count, step, before in zip(output, steps, first, strict=True)]
    if any(before >= extent for before, extent in zip(first, reach, strict=True)) or any(
        end >= size for end, size in zip(ends, x.shape[1:3], strict=True)
    ):
        message = f"padding {padding!r} makes windows of {sizes} that hold no cell of the image: pad less"
        raise IntegerError(message)
    return sizes, steps, output, first


def _counts(
    x: np.ndarray, sizes: tuple[int, int], output: tuple[int, int], steps: tuple[int, int], first: tuple[int, int]
) -> np.ndarray:
    # One image of one channel is enough to count.
    one = np.zeros((1, x.shape[1], x.shape[2], 1), dtype=x.dtype)
    return pool_sums(one, sizes, output, steps, first)[1]


def _check_type(x: np.ndarray, named: Semantics) -> None:
    lacking = {"onnxruntime": np.int16, "tflm": np.uint8}.get(named.name)
    if lacking is not None and x.dtype == lacking:
        message = f"{named} pools {'8-bit' if lacking is np.int16 else 'signed'} codes only, not {x.dtype}"
        raise SemanticsError(message)


def _reciprocal(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    # TOSA 1.0, section 1.9.3: reciprocal_scale and apply_scale_32 (single rounding).
    k = np.array([int(count - 1).bit_length() for count in counts.ravel()], dtype=np.int64).reshape(counts.shape)
    multiplier = (((1 << 30) + 1) << k) // counts
    shift = 30 + k
    return (sums * multiplier + (np.int64(1) << (shift - 1))) >> shift


def _finish(
    values: np.ndarray, kind: np.dtype, clamp: tuple[int | None, int | None], layout: str, name: str
) -> np.ndarray:
    limits, (floor, ceiling) = np.iinfo(kind), clamp_limits(*clamp, kind)
    if is_watched():
        left = int(np.count_nonzero((values < limits.min) | (values > limits.max)))
        note(Observation(name, outputs=int(values.size), saturated=left))
    codes = np.clip(values, floor, ceiling).astype(kind)
    return np.ascontiguousarray(np.moveaxis(codes, 3, 1)) if layout == "NCHW" else codes

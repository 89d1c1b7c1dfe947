"""Convolutions in integers: windows of an image as rows (im2col, im2win), then exact sums and one requantization."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.accumulator import Accumulator, as_accumulator, needed_bits, worst_case
from workbench.integer.arguments import as_array, check_factors, check_word, check_zero_point, one_integer, shown
from workbench.integer.linear import accumulate, check_operand, rescaling
from workbench.integer.operands import check_bias
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.watch import Observation, is_watched, merged, note
from workbench.kernels.windows import depthwise_sums, im2col, im2win

#: More padding than this on one side is a slip, and would fill the memory.
_MOST_PADDING = 1 << 14
#: Rows of im2win that are multiplied at once: enough to keep the matrix product busy, little enough to stay in cache.
ROWS_AT_ONCE = 512


def conv2d(
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
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    dtype: Any = np.int8,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
    accumulator: Accumulator | str | None = None,
    method: str = "im2col",
) -> np.ndarray:
    """Return a two-dimensional convolution (cross-correlation) in integers.

    ``sum = bias[o] + sum_(i, j, c) (x[y, z, c] - input_zero_point) * (weight[o, i, j, c] - weight_zero_point[o])`` with
    ``y = row * stride - top + i * dilation``, padded with the input's zero point; then ``requantize``. Types that a
    runtime has no kernel for are summed exactly all the same and rounded its way.

    Args:
        x: int8, uint8 or int16 (batch, height, width, channels), or (batch, channels, height, width) in ``NCHW``.
        weight: (outputs, rows, columns, channels / groups), or (outputs, channels / groups, rows, columns) in
            ``NCHW``. A depthwise layer of TensorFlow Lite, (1, rows, columns, outputs), is taken as it is where
            ``groups`` equals the number of channels: its output channel ``c * multiplier + k`` reads channel c.
        bias: int32 (int64 for int16 operands) (outputs,) with scale input_scale * weight_scale and zero point 0.
        input_scale: real scale of the input; with ``weight_scale`` and ``output_scale``, or give ``multiplier``.
        weight_scale: one, or one per output channel.
        output_scale: real scale of the output.
        multiplier: ready multipliers in the runtime's convention (one, or one per output channel) instead of scales.
        shift: their shifts.
        input_zero_point: code of 0 in ``x``, and what padding holds.
        weight_zero_point: code of 0 in ``weight``: one, or one per output channel.
        output_zero_point: code of 0 in the output.
        stride: steps between windows, one or (vertical, horizontal).
        padding: one number, ``((top, bottom), (left, right))``, ``"same"`` (output = ceil(input / stride), the odd cell
            below and to the right), or ``"valid"``.
        dilation: steps between the cells of a window, one or (vertical, horizontal).
        groups: how many groups of channels are convolved each on its own.
        layout: ``NHWC`` or ``NCHW``, of input and output.
        dtype: integer type of the output.
        low: smallest output code (an activation fused into the layer).
        high: largest output code.
        semantics: whose rounding (LiteRT's convolutions round twice, see ``outside_linear``).
        accumulator: see ``accumulate``.
        method: ``im2col`` copies every window to a row; ``im2win`` stores what neighbouring windows share once (see
            ``workbench.kernels.windows.im2win``). Sums are the same; in an accumulator that saturates, im2col adds row
            by row of the window and im2win column by column. Depthwise layers are summed in place by either.

    Raises:
        IntegerError: types, shapes, scales, zero points or geometry do not fit.
        AccumulatorOverflowError: see ``accumulate``.
    """
    x, weight = as_array(x, "the input"), as_array(weight, "the weight")
    outputs = weight.shape[0] if weight.ndim == 4 else 0
    check_word(layout, ("NHWC", "NCHW"), "a layout")
    groups = one_integer(groups, "groups", 1, 1 << 31)
    check_factors(multiplier, shift, input_scale, weight_scale, output_scale)
    if _is_channel_last_depthwise(weight.shape, x.shape, groups, layout):
        outputs = weight.shape[3]
    # TensorFlow Lite's legacy uint8 layers take the product of the two scales in float32, its int8 layers in float64.
    legacy = x.dtype == np.uint8
    scale = rescaling(
        input_scale,
        weight_scale,
        output_scale,
        multiplier,
        outputs,
        outside_linear(semantics),
        product="float32" if legacy else "float64",
    )
    with merged("conv2d"):
        sums = convolve(
            x,
            weight,
            bias,
            input_zero_point=input_zero_point,
            weight_zero_point=weight_zero_point,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            layout=layout,
            accumulator=accumulator,
            method=method,
        )
        return requantize(
            sums,
            multiplier,
            shift,
            scale=scale,
            zero_point=output_zero_point,
            dtype=dtype,
            low=low,
            high=high,
            axis=-1 if layout == "NHWC" else 1,
            semantics=outside_linear(semantics),
            operator="conv2d",
        )


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    input_zero_point: int = 0,
    weight_zero_point: Any = 0,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    accumulator: Accumulator | str | None = None,
    method: str = "im2col",
) -> np.ndarray:
    """Return the accumulators of ``conv2d``, before requantization.

    Args:
        x: see ``conv2d``, as are all others.
        weight: see there.
        bias: see there.
        input_zero_point: see there.
        weight_zero_point: see there.
        stride: see there.
        padding: see there.
        dilation: see there.
        groups: see there.
        layout: see there.
        accumulator: see there.
        method: see there.

    Returns:
        int32 where both operands have 8 bits, else int64, in the given layout.

    Raises:
        IntegerError: types, shapes, zero points or geometry do not fit.
        AccumulatorOverflowError: see ``accumulate``.
    """
    x, weight = check_operand(x, "the input"), check_operand(weight, "the weight")
    groups = one_integer(groups, "groups", 1, 1 << 31)
    check_word(layout, ("NHWC", "NCHW"), "a layout")
    check_word(method, ("im2col", "im2win"), "a convolution's method")
    if x.ndim != 4 or weight.ndim != 4:
        message = f"a convolution takes four axes of input and weight, not {x.shape} and {weight.shape}"
        raise IntegerError(message)
    if _is_channel_last_depthwise(weight.shape, x.shape, groups, layout):
        weight = np.moveaxis(weight, 3, 0).reshape(weight.shape[3], *weight.shape[1:3], 1)
    elif layout == "NCHW":
        weight = np.moveaxis(weight, 1, 3)
    if layout == "NCHW":
        x = np.moveaxis(x, 1, 3)
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    channels, outputs = x.shape[3], weight.shape[0]
    if channels % groups or outputs % groups or weight.shape[3] != channels // groups:
        message = (
            f"{channels} input and {outputs} output channels in {groups} groups need weights of "
            f"{channels // groups if channels % groups == 0 else 'no whole number of'} channels, not {weight.shape[3]}"
        )
        raise IntegerError(message)
    window = (weight.shape[1], weight.shape[2])
    steps, dilations = pair(stride, "a stride"), pair(dilation, "a dilation")
    output, first = geometry(x.shape[1:3], window, steps, padding, dilations)
    check_zero_point(input_zero_point, x.dtype)
    check_zero_point(weight_zero_point, weight.dtype, several=True)
    zeros = np.atleast_1d(np.asarray(weight_zero_point, dtype=np.int64))
    if zeros.shape not in {(1,), (outputs,)}:
        message = f"one weight zero point or one per output channel ({outputs}), not {zeros.shape}"
        raise IntegerError(message)
    place = {"stride": steps, "first": first, "dilation": dilations}
    limits = as_accumulator(accumulator, 62 if max(x.dtype.itemsize, weight.dtype.itemsize) > 1 else 32)
    with merged("conv2d"):
        if groups == channels > 1 and limits.overflow == "error":
            sums = _depthwise(x, weight, bias, output, int(input_zero_point), zeros, limits, place)
        else:
            sums = _grouped(x, weight, bias, output, int(input_zero_point), zeros, limits, place, int(groups), method)
    return np.ascontiguousarray(np.moveaxis(sums, 3, 1)) if layout == "NCHW" else sums


def geometry(
    image: tuple[int, ...], window: tuple[int, int], stride: tuple[int, int], padding: Any, dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the output's (rows, columns), and the padding (above, to the left).

    Args:
        image: rows and columns of the input.
        window: rows and columns of the window.
        stride: steps between windows.
        padding: one number, ``((top, bottom), (left, right))``, ``"same"`` or ``"valid"``.
        dilation: steps between the cells of a window.

    Raises:
        IntegerError: no such padding, or a window larger than the padded image.
    """
    reach = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    if min(window) < 1:
        message = f"a window has 1 row and column or more, not {window}"
        raise IntegerError(message)
    if isinstance(padding, str) and padding == "same":
        output = tuple(-(-size // step) for size, step in zip(image, stride, strict=True))
        missing = [
            max((count - 1) * step + extent - size, 0)
            for count, step, extent, size in zip(output, stride, reach, image, strict=True)
        ]
        return (output[0], output[1]), (missing[0] // 2, missing[1] // 2)
    if isinstance(padding, str) and padding == "valid":
        padding = 0
    if isinstance(padding, str):
        message = f"padding is 'same', 'valid', one number or ((top, bottom), (left, right)), not {shown(padding)}"
        raise IntegerError(message)
    try:
        cells = np.asarray(padding)
    except ValueError:
        cells = np.empty(0)
    if (
        cells.dtype.kind not in "iu"
        or cells.shape not in {(), (2, 2)}
        or np.any(cells < 0)
        or np.any(cells > _MOST_PADDING)
    ):
        message = f"padding is 'same', 'valid', one number or ((top, bottom), (left, right)), not {shown(padding)}"
        raise IntegerError(message)
    cells = np.broadcast_to(cells, (2, 2))
    room = [int(size + both.sum() - extent) for size, both, extent in zip(image, cells, reach, strict=True)]
    if min(room) < 0:
        message = f"a window of {reach[0]} x {reach[1]} cells does not fit into the padded image of {image} cells"
        raise IntegerError(message)
    rows, columns = (space // step + 1 for space, step in zip(room, stride, strict=True))
    return (rows, columns), (int(cells[0, 0]), int(cells[1, 0]))


def pair(value: Any, name: str) -> tuple[int, int]:
    """Return one or two positive integers as two.

    Raises:
        IntegerError: anything else.
    """
    numbers = as_array(value, name)
    if numbers.dtype.kind not in "iu" or numbers.shape not in {(), (1,), (2,)} or np.any(numbers < 1):
        message = f"{name} is one or two integers of 1 or above, not {shown(value)}"
        raise IntegerError(message)
    both = np.broadcast_to(numbers, (2,))
    return int(both[0]), int(both[1])


def _is_channel_last_depthwise(weight: tuple[int, ...], x: tuple[int, ...], groups: int, layout: str) -> bool:
    # With one channel in all the two forms are told apart by the last axis: 1 in OHWI, the outputs in 1HWO.
    return (
        layout == "NHWC"
        and len(x) == 4
        and len(weight) == 4
        and weight[0] == 1
        and groups == x[3]
        and weight[3] % max(groups, 1) == 0
        and (groups > 1 or weight[3] > 1)
    )


def _grouped(  # noqa: PLR0917
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    output: tuple[int, int],
    zero: int,
    zeros: np.ndarray,
    limits: Accumulator,
    place: dict[str, tuple[int, int]],
    groups: int,
    method: str,
) -> np.ndarray:
    each, own = x.shape[3] // groups, weight.shape[0] // groups
    if bias is not None:
        check_bias(bias, weight.shape[0], wide=max(x.dtype.itemsize, weight.dtype.itemsize) > 1)
    parts = []
    for group in range(groups):
        mine = slice(group * own, (group + 1) * own)
        options = {
            "input_zero_point": zero,
            "weight_zero_point": zeros if zeros.size == 1 else zeros[mine],
            "accumulator": limits,
            "operator": "conv2d",
        }
        part = x if groups == 1 else np.ascontiguousarray(x[..., group * each : (group + 1) * each])
        start = None if bias is None else np.asarray(bias)[mine]
        run = _by_rows if method == "im2col" else _by_columns
        parts.append(run(part, weight[mine], start, output, place, options))
    return parts[0] if groups == 1 else np.concatenate(parts, axis=3)


def _by_rows(  # noqa: PLR0917
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    output: tuple[int, int],
    place: dict[str, tuple[int, int]],
    options: dict[str, Any],
) -> np.ndarray:
    window = (weight.shape[1], weight.shape[2])
    alone = window == (1, 1) and place["stride"] == (1, 1) and output == x.shape[1:3] and place["first"] == (0, 0)
    rows = x if alone else im2col(x, window, output, **place, fill=options["input_zero_point"])
    return accumulate(rows, weight.reshape(len(weight), -1), bias, **options)


def _by_columns(  # noqa: PLR0917
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    output: tuple[int, int],
    place: dict[str, tuple[int, int]],
    options: dict[str, Any],
) -> np.ndarray:
    window = (weight.shape[1], weight.shape[2])
    columns, starts = im2win(x, window, output, **place, fill=options["input_zero_point"])
    batch, rows, places = columns.shape[:3]
    cell = window[0] * x.shape[3]
    lines = columns.reshape(batch * rows, places * cell)
    turned = np.ascontiguousarray(weight.transpose(0, 2, 1, 3)).reshape(len(weight), -1)
    depth = window[1] * cell
    if not lines.size:
        return accumulate(np.empty((batch, *output, depth), dtype=x.dtype), turned, bias, **options)
    # Every window is a run of its line; only as many rows as one product takes are copied out of it at a time.
    runs = np.lib.stride_tricks.sliding_window_view(lines, depth, axis=1)
    step = max(ROWS_AT_ONCE // max(len(starts), 1), 1)
    parts = [
        accumulate(runs[start : start + step, starts * cell], turned, bias, **options)
        for start in range(0, len(lines), step)
    ]
    return np.concatenate(parts).reshape(batch, *output, len(weight))


def _depthwise(  # noqa: PLR0917
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    output: tuple[int, int],
    zero: int,
    zeros: np.ndarray,
    limits: Accumulator,
    place: dict[str, tuple[int, int]],
) -> np.ndarray:
    outputs = weight.shape[0]
    wide = max(x.dtype.itemsize, weight.dtype.itemsize) > 1
    start = check_bias(bias, outputs, wide=wide)
    reach = np.iinfo(x.dtype)
    flat = weight.reshape(outputs, -1)
    worst = needed_bits(
        *worst_case(flat, int(reach.min) - zero, int(reach.max) - zero, weight_zero_point=zeros, bias=start)
    )
    sums = depthwise_sums(
        x,
        np.ascontiguousarray(np.moveaxis(weight[..., 0], 0, 2)),
        output,
        zero_point=zero,
        weight_zero_points=zeros,
        start=start,
        safe=worst <= 32 and not wide,
        **place,
    )
    observed = needed_bits(int(sums.min(initial=0)), int(sums.max(initial=0)))
    if worst > limits.bits and observed > limits.bits:
        message = (
            f"a sum of conv2d needs {observed} bits and the accumulator has {limits.bits}: "
            f"use a wider one, or say how it overflows, e.g. 'int{limits.bits}:wrap'"
        )
        raise AccumulatorOverflowError(message)
    if is_watched():
        note(
            Observation(
                "conv2d",
                outputs=int(sums.size),
                accumulator_bits=limits.bits,
                worst_case_bits=worst,
                observed_bits=observed,
            )
        )
    return sums if wide or limits.bits > 32 else sums.astype(np.int32, copy=False)

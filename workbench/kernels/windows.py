"""Sliding windows over images: the im2col and im2win layouts, depthwise sums, and pooling loops."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel


@kernel(parallel=True)
def _im2col(x, window, stride, first, dilation, fill, out):
    batch, height, width, channels = x.shape
    rows, columns = out.shape[1], out.shape[2]
    for line in prange(batch * rows):
        image, row = line // rows, line % rows
        for column in range(columns):
            place = 0
            for i in range(window[0]):
                y = row * stride[0] - first[0] + i * dilation[0]
                for j in range(window[1]):
                    z = column * stride[1] - first[1] + j * dilation[1]
                    if 0 <= y < height and 0 <= z < width:
                        for channel in range(channels):
                            out[image, row, column, place + channel] = x[image, y, z, channel]
                    else:
                        for channel in range(channels):
                            out[image, row, column, place + channel] = fill
                    place += channels


@kernel(parallel=True)
def _im2win(x, window, stride, first, dilation, fill, classes, out):
    batch, height, width, channels = x.shape
    rows, places = out.shape[1], out.shape[2]
    # Columns are sorted by their residue modulo the horizontal dilation, so that a dilated window is contiguous too.
    each = places // classes
    for line in prange(batch * rows):
        image, row = line // rows, line % rows
        for place in range(places):
            z = (place % each) * classes + place // each - first[1]
            for i in range(window[0]):
                y = row * stride[0] - first[0] + i * dilation[0]
                if 0 <= y < height and 0 <= z < width:
                    for channel in range(channels):
                        out[image, row, place, i, channel] = x[image, y, z, channel]
                else:
                    for channel in range(channels):
                        out[image, row, place, i, channel] = fill


@kernel(parallel=True)
def _depthwise(x, weight, zero, zeros, start, stride, first, dilation, out):
    batch, height, width, channels = x.shape
    rows, columns, outputs = out.shape[1], out.shape[2], out.shape[3]
    each = outputs // channels
    own = 0 if zeros.shape[0] == 1 else 1
    for line in prange(batch * rows):
        image, row = line // rows, line % rows
        for column in range(columns):
            for output in range(outputs):
                out[image, row, column, output] = start[output]
            for i in range(weight.shape[0]):
                y = row * stride[0] - first[0] + i * dilation[0]
                if y < 0 or y >= height:
                    # Padding holds the input's zero point: its products are 0.
                    continue
                for j in range(weight.shape[1]):
                    z = column * stride[1] - first[1] + j * dilation[1]
                    if z < 0 or z >= width:
                        continue
                    for channel in range(channels):
                        value = out.dtype.type(x[image, y, z, channel]) - out.dtype.type(zero)
                        for k in range(each):
                            output = channel * each + k
                            factor = out.dtype.type(weight[i, j, output]) - out.dtype.type(zeros[own * output])
                            out[image, row, column, output] += value * factor


@kernel(parallel=True)
def _pool_sums(x, window, stride, first, sums, counts):
    batch, height, width, channels = x.shape
    rows, columns = sums.shape[1], sums.shape[2]
    for line in prange(batch * rows):
        image, row = line // rows, line % rows
        for column in range(columns):
            top, left = row * stride[0] - first[0], column * stride[1] - first[1]
            count = 0
            for y in range(max(top, 0), min(top + window[0], height)):
                for z in range(max(left, 0), min(left + window[1], width)):
                    count += 1
                    for channel in range(channels):
                        sums[image, row, column, channel] += x[image, y, z, channel]
            counts[row, column] = count


@kernel(parallel=True)
def _pool_float_sums(x, scale, zero, window, stride, first, out):
    batch, height, width, channels = x.shape
    rows, columns = out.shape[1], out.shape[2]
    for line in prange(batch * rows):
        image, row = line // rows, line % rows
        for column in range(columns):
            top, left = row * stride[0] - first[0], column * stride[1] - first[1]
            for y in range(max(top, 0), min(top + window[0], height)):
                for z in range(max(left, 0), min(left + window[1], width)):
                    for channel in range(channels):
                        # One float32 rounding per cell, in this order: that is the runtime's recipe.
                        out[image, row, column, channel] += scale * np.float32(np.int64(x[image, y, z, channel]) - zero)


@kernel(parallel=True)
def _pool_maxima(x, window, stride, first, dilation, out):
    batch, height, width, channels = x.shape
    rows, columns = out.shape[1], out.shape[2]
    for line in prange(batch * rows):
        image, row = line // rows, line % rows
        for column in range(columns):
            for i in range(window[0]):
                y = row * stride[0] - first[0] + i * dilation[0]
                for j in range(window[1]):
                    z = column * stride[1] - first[1] + j * dilation[1]
                    if 0 <= y < height and 0 <= z < width:
                        for channel in range(channels):
                            code = x[image, y, z, channel]
                            out[image, row, column, channel] = max(out[image, row, column, channel], code)


def _pair(values: tuple[int, int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@exclusive
def im2col(
    x: np.ndarray,
    window: tuple[int, int],
    output: tuple[int, int],
    *,
    stride: tuple[int, int],
    first: tuple[int, int],
    dilation: tuple[int, int],
    fill: int,
) -> np.ndarray:
    """Return every window as one row: (batch, output rows, output columns, window rows * window columns * channels).

    Args:
        x: int8, uint8 or int16 (batch, height, width, channels), C order.
        window: rows and columns of the window.
        output: how many windows there are, vertically and horizontally.
        stride: steps between windows.
        first: padding above and to the left.
        dilation: steps between the cells of a window.
        fill: what padding holds: the zero point.
    """
    out = np.empty((x.shape[0], *output, window[0] * window[1] * x.shape[3]), dtype=x.dtype)
    _im2col(x, _pair(window), _pair(stride), _pair(first), _pair(dilation), x.dtype.type(fill), out)
    return out


@exclusive
def im2win(
    x: np.ndarray,
    window: tuple[int, int],
    output: tuple[int, int],
    *,
    stride: tuple[int, int],
    first: tuple[int, int],
    dilation: tuple[int, int],
    fill: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the im2win layout: for every output row the columns that its windows touch, each column contiguous.

    Horizontally neighbouring windows overlap in storage, so the scratch holds output rows * width * window rows cells
    instead of im2col's output rows * output columns * window rows * window columns (Lu, Chu and Wan, "Im2win: Memory
    Efficient Convolution On SIMD Architectures", 2022, section III). A window is the run of ``window[1]`` columns from
    its start on, its cells in the order (window column, window row, channel).

    Args:
        x: as in ``im2col``, as are all others.
        window: see there.
        output: see there.
        stride: see there.
        first: see there.
        dilation: see there; the columns are sorted by their residue modulo the horizontal one.
        fill: see there.

    Returns:
        columns (batch, output rows, places, window rows, channels), and int64 (output columns,): the place at which
        each window starts.
    """
    classes = dilation[1]
    reach = (output[1] - 1) * stride[1] + (window[1] - 1) * dilation[1] + 1 if output[1] else 0
    each = -(-reach // classes)
    out = np.empty((x.shape[0], output[0], each * classes, window[0], x.shape[3]), dtype=x.dtype)
    _im2win(x, _pair(window), _pair(stride), _pair(first), _pair(dilation), x.dtype.type(fill), classes, out)
    begin = np.arange(output[1], dtype=np.int64) * stride[1]
    return out, begin % classes * each + begin // classes


@exclusive
def depthwise_sums(
    x: np.ndarray,
    weight: np.ndarray,
    output: tuple[int, int],
    *,
    zero_point: int,
    weight_zero_points: np.ndarray,
    start: np.ndarray,
    stride: tuple[int, int],
    first: tuple[int, int],
    dilation: tuple[int, int],
    safe: bool,
) -> np.ndarray:
    """Return the accumulators of a depthwise convolution: output channel ``c * multiplier + k`` reads input channel c.

    Args:
        x: int8, uint8 or int16 (batch, height, width, channels), C order.
        weight: int8, uint8 or int16 (window rows, window columns, outputs), C order.
        output: output rows and columns.
        zero_point: of the input.
        weight_zero_points: int64, one or one per output.
        start: int64 (outputs,): the bias.
        stride: steps between windows.
        first: padding above and to the left.
        dilation: steps between the cells of a window.
        safe: whether every partial sum is known to fit int32.

    Returns:
        int32 where ``safe``, else int64: (batch, output rows, output columns, outputs).
    """
    kind = np.int32 if safe else np.int64
    out = np.empty((x.shape[0], *output, weight.shape[2]), dtype=kind)
    _depthwise(
        x,
        weight,
        zero_point,
        weight_zero_points,
        start.astype(kind),
        _pair(stride),
        _pair(first),
        _pair(dilation),
        out,
    )
    return out


@exclusive
def pool_sums(
    x: np.ndarray, window: tuple[int, int], output: tuple[int, int], stride: tuple[int, int], first: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return per window the sum of the codes inside the image, and how many cells lie inside.

    Args:
        x: integers (batch, height, width, channels), C order.
        window: rows and columns of the window.
        output: output rows and columns.
        stride: steps between windows.
        first: padding above and to the left.

    Returns:
        int64 (batch, output rows, output columns, channels), and int64 (output rows, output columns).
    """
    sums = np.zeros((x.shape[0], *output, x.shape[3]), dtype=np.int64)
    counts = np.zeros(output, dtype=np.int64)
    # At least one image, so that the counts are set for an empty batch too.
    shown = x if x.shape[0] else np.zeros((1, *x.shape[1:]), dtype=x.dtype)
    room = sums if x.shape[0] else np.zeros((1, *sums.shape[1:]), dtype=np.int64)
    _pool_sums(shown, _pair(window), _pair(stride), _pair(first), room, counts)
    return sums, counts


@exclusive
def pool_float_sums(
    x: np.ndarray,
    scale: float,
    zero: int,
    window: tuple[int, int],
    output: tuple[int, int],
    stride: tuple[int, int],
    first: tuple[int, int],
) -> np.ndarray:
    """Return per window the float32 sum of ``scale * (code - zero)``, cell after cell, row by row.

    Args:
        x: 8-bit integers (batch, height, width, channels), C order.
        scale: float32 number.
        zero: zero point.
        window: rows and columns of the window.
        output: output rows and columns.
        stride: steps between windows.
        first: padding above and to the left.
    """
    out = np.zeros((x.shape[0], *output, x.shape[3]), dtype=np.float32)
    _pool_float_sums(x, np.float32(scale), zero, _pair(window), _pair(stride), _pair(first), out)
    return out


@exclusive
def pool_maxima(
    x: np.ndarray,
    window: tuple[int, int],
    output: tuple[int, int],
    stride: tuple[int, int],
    first: tuple[int, int],
    dilation: tuple[int, int],
) -> np.ndarray:
    """Return per window the largest code inside the image (the type's smallest where a window holds none).

    Args:
        x: integers (batch, height, width, channels), C order.
        window: rows and columns of the window.
        output: output rows and columns.
        stride: steps between windows.
        first: padding above and to the left.
        dilation: steps between the cells of a window.
    """
    out = np.full((x.shape[0], *output, x.shape[3]), np.iinfo(x.dtype).min, dtype=x.dtype)
    _pool_maxima(x, _pair(window), _pair(stride), _pair(first), _pair(dilation), out)
    return out

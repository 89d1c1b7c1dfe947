"""Weights on the axis where every group's absmax is 1, the grid's levels among them, and one channel alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.quantization.quantize import quantize
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import scale_and_offset
from workbench.quantization.source import as_matrix
from workbench.quantization.statistics import Histogram

if TYPE_CHECKING:
    from workbench.grids.grid import Grid
    from workbench.quantization.sketch import Sketch

Axis = Literal["output", "input"]


def normalised_histogram(sketch: Sketch, bins: int = 256) -> Histogram:
    """Count a layer's weights on the axis where every group's absmax is 1.

    A sketch knows each of its own bins' smallest and largest weight only; a bin that straddles a border here is
    counted where its middle lies. A sketch's bins are at most 2^-10 of their value wide, so the counts of two
    neighbouring bins may trade a few weights; no weight is lost.

    Args:
        sketch: the layer's sketch.
        bins: how many bins to make over the range of the sketch.

    Raises:
        QuantizationError: ``bins`` is not positive.
    """
    if bins < 1:
        message = f"a histogram has at least one bin, not {bins}"
        raise QuantizationError(message)
    middle = (np.asarray(sketch.value_min, np.float64) + np.asarray(sketch.value_max, np.float64)) / 2
    low, high = (0.0, 1.0) if sketch.normalization == "range" else (-1.0, 1.0)
    counts, edges = np.histogram(np.clip(middle, low, high), bins=bins, range=(low, high), weights=sketch.n)
    return Histogram(edges, counts)


def normalised_levels(grid: Grid, clip: float = 1.0) -> Float[np.ndarray, " levels"]:
    """Return where a grid's levels stand on the axis of a sketch, on which every group's absmax (or range) is 1.

    Args:
        grid: the grid.
        clip: fraction of the absmax (or of the range, around its middle) that every group's scale keeps.
    """
    if grid.normalization == "range":
        return 0.5 + (grid.levels - 0.5) * clip
    return grid.levels * clip


def tensor_levels(sketch: Sketch, grid: Grid, clip: float = 1.0) -> Float[np.ndarray, " levels"]:
    """Return the weights that a grid's codes stand for where one scale, clip times absmax, serves the whole tensor.

    Args:
        sketch: any sketch of the layer.
        grid: the grid.
        clip: fraction of the absmax (or range) that the scale keeps.
    """
    scale_format = check_scale_format(None, grid)
    largest = float(sketch.ranges.reach(grid.normalization).max())
    rounded, offset = scale_and_offset(sketch.ranges, grid, clip, scale_format, largest)
    return float(rounded.scale[0, 0]) * (grid.levels - float(offset[0, 0]))


def channel_levels(
    weight: Any, channel: int, grid: Grid, scale: str = "absmax", clip: float = 1.0
) -> Float[np.ndarray, " levels"]:
    """Return the weights that a grid's codes stand for in one output channel that has its own scale.

    Args:
        weight: a layer, an array, a tensor.
        channel: the row.
        grid: the grid.
        scale: the scale rule.
        clip: fraction of the rule's scale to keep.

    Raises:
        QuantizationError: there is no such channel, or the rule or the clip is not known.
    """
    one = quantize(channel_weights(weight, channel)[None, :], grid, "channel", scale=scale, clip=clip)
    return float(one.scale[0, 0]) * (grid.levels - float(one.offset[0, 0]))


def channel_weights(weight: Any, channel: int, axis: Axis = "output") -> Float[np.ndarray, " weights"]:
    """Return the weights of one channel, float64.

    Args:
        weight: a layer, an array, a tensor.
        channel: the row (output channel) or the column (input channel) of the matrix view.
        axis: ``output`` or ``input``.

    Raises:
        QuantizationError: there is no such channel or axis.
    """
    matrix = as_matrix(weight)
    rows, columns = matrix.weights.shape
    if axis not in {"output", "input"}:
        message = f"channels are output (rows) or input (columns) channels, not {axis!r}"
        raise QuantizationError(message)
    most = rows if axis == "output" else columns
    if not 0 <= channel < most:
        message = f"{matrix.name} has {axis} channels 0 to {most - 1}, not {channel}"
        raise QuantizationError(message)
    if axis == "output":
        return matrix.weights.rows(channel, channel + 1)[0].astype(np.float64)
    return np.concatenate([block[:, channel].astype(np.float64) for _, block in matrix.weights.blocks()])

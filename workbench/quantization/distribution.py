"""Distributions as pictures need them: counts on the normalised axis, quantiles beside a Gaussian's, one channel alone."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.quantization.quantize import quantize
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import scale_and_offset
from workbench.quantization.source import as_matrix

if TYPE_CHECKING:
    import pandas as pd

    from workbench.grids.grid import Grid
    from workbench.quantization.sketch import Sketch

Axis = Literal["output", "input"]


@dataclass(frozen=True)
class Counts:
    """Weights counted in bins."""

    edges: Float[np.ndarray, " bins+1"]
    """Borders of the bins, ascending; the last bin holds its upper border too."""
    counts: Float[np.ndarray, " bins"]
    """Weights in each bin, whole numbers as float64."""

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each bin: its borders and its weights."""
        import pandas as pd

        return pd.DataFrame({"from": self.edges[:-1], "to": self.edges[1:], "weights": self.counts})


@dataclass(frozen=True)
class GaussianQuantiles:
    """Quantiles of a layer's weights beside those of a Gaussian of the same mean and variance."""

    gaussian: Float[np.ndarray, " points"]
    """Quantiles of the standard normal distribution, ascending, in units of sigma."""
    weights: Float[np.ndarray, " points"]
    """Quantiles of (w - mean) / standard deviation at the same probabilities."""

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each probability."""
        import pandas as pd

        return pd.DataFrame({"gaussian": self.gaussian, "weights": self.weights})


def normalised_counts(sketch: Sketch, bins: int = 256) -> Counts:
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
    return Counts(edges, counts)


def gaussian_quantiles(sketch: Sketch, points: int = 200) -> GaussianQuantiles:
    """Return quantiles of a layer's weights beside those of a Gaussian.

    The points stand at equal distances on the Gaussian's axis from the smallest weight to the largest, so the tails
    are as finely drawn as the middle. A quantile is as sharp as the sketch's bins (2^-10 of its value, and exact for
    16-bit weights, whose every value has a bin).

    Args:
        sketch: a sketch at granularity ``tensor``: with more scales than one the weights' own values are not in it.
        points: how many quantiles.

    Raises:
        QuantizationError: the sketch has more than one scale, or fewer than two points are asked for.
    """
    if str(sketch.granularity) != "tensor" or sketch.normalization != "absmax":
        message = "quantiles of the weights need a sketch at granularity tensor, normalised by absmax"
        raise QuantizationError(message)
    if points < 2:
        message = f"a quantile plot has at least two points, not {points}"
        raise QuantizationError(message)
    value = (np.asarray(sketch.value_min, np.float64) + np.asarray(sketch.value_max, np.float64)) / 2
    below = np.cumsum(sketch.n)
    count = float(below[-1])
    mean = float(np.dot(sketch.n, value)) / count
    deviation = float(np.sqrt(np.dot(sketch.n, (value - mean) ** 2) / count))
    # Hazen's plotting positions (k - 1/2) / N: the extremes stand at the quantiles of half a weight.
    normal = NormalDist()
    reach = -normal.inv_cdf(0.5 / count) if count > 1 else 0.0
    gaussian = np.linspace(-reach, reach, points)
    probability = np.array([normal.cdf(z) for z in gaussian])
    at = np.minimum(np.searchsorted(below, probability * count * (1 - 1e-12)), len(value) - 1)
    return GaussianQuantiles(gaussian, (value[at] - mean) / deviation if deviation > 0 else np.zeros(points))


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


def channel_counts(weight: Any, channel: int, axis: Axis = "output", bins: int = 96) -> Counts:
    """Count the weights of one channel in equal bins from its smallest weight to its largest.

    Arguments and errors as in ``channel_weights``; ``bins`` is how many bins to make.
    """
    counts, edges = np.histogram(channel_weights(weight, channel, axis), bins=bins)
    return Counts(edges, counts.astype(np.float64))

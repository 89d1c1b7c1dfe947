"""What a layer's weights look like: moments, ranges and kurtosis by channel, the largest weights, histogram, quantiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import QuantizationError
from workbench.quantization.granularity import PerAxis, PerTensor
from workbench.quantization.ranges import group_ranges
from workbench.quantization.sketch import Progress, sketch
from workbench.quantization.sketching import step_bytes
from workbench.quantization.source import Matrix, as_matrix

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class ChannelStatistics:
    """Moments and ranges of every output channel (row) or every input channel (column) of a weight matrix."""

    mean: Float[np.ndarray, " channels"]
    std: Float[np.ndarray, " channels"]
    """Root of the mean squared deviation (population)."""
    minimum: Float[np.ndarray, " channels"]
    maximum: Float[np.ndarray, " channels"]
    skewness: Float[np.ndarray, " channels"]
    """Third standardised moment; nan where all weights are equal."""
    kurtosis: Float[np.ndarray, " channels"]
    """Fourth standardised moment: 3 for a Gaussian, 6 for a Laplace; nan where all weights are equal."""

    @property
    def absmax(self) -> Float[np.ndarray, " channels"]:
        """Largest magnitude."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    @property
    def max_over_std(self) -> Float[np.ndarray, " channels"]:
        """Largest magnitude in standard deviations; nan where all weights are equal."""
        return np.divide(self.absmax, self.std, out=np.full_like(self.std, np.nan), where=self.std > 0.0)

    def __len__(self) -> int:
        return len(self.mean)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each channel."""
        import pandas as pd

        names = ("mean", "std", "minimum", "maximum", "absmax", "max_over_std", "skewness", "kurtosis")
        return pd.DataFrame({name: getattr(self, name) for name in names}).rename_axis("channel")

    def __repr__(self) -> str:
        return f"ChannelStatistics({len(self)} channels, absmax up to {self.absmax.max():.4g})"


@dataclass(frozen=True, repr=False, eq=False)
class WeightStatistics:
    """Float64 statistics of all weights of a layer."""

    name: str
    shape: tuple[int, ...]
    count: int
    mean: float
    std: float
    """Root of the mean squared deviation (population)."""
    minimum: float
    maximum: float
    skewness: float
    """Third standardised moment; nan where all weights are equal."""
    kurtosis: float
    """Fourth standardised moment: 3 for a Gaussian, 6 for a Laplace; nan where all weights are equal."""
    zeros: int
    """Weights that are exactly zero."""
    output: ChannelStatistics = field(repr=False)
    """By output channel (row of the matrix view)."""
    input: ChannelStatistics = field(repr=False)
    """By input channel (column of the matrix view)."""

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def max_over_sigma(self) -> float:
        """Largest magnitude in standard deviations; nan where all weights are equal."""
        return self.absmax / self.std if self.std > 0.0 else float("nan")

    def to_dict(self) -> dict[str, float | int | str]:
        """Return the numbers of the whole layer by name."""
        names = (
            "count",
            "mean",
            "std",
            "minimum",
            "maximum",
            "absmax",
            "max_over_sigma",
            "skewness",
            "kurtosis",
            "zeros",
        )
        return {"name": self.name, **{name: getattr(self, name) for name in names}}

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (
            f"WeightStatistics({self.name!r}, {shape}, std={self.std:.4g}, absmax={self.absmax:.4g} "
            f"({self.max_over_sigma:.3g} sigma), kurtosis={self.kurtosis:.3g}, zeros={self.zeros})"
        )


def weight_statistics(layer: Any, progress: Progress | None = None) -> WeightStatistics:
    """Measure a layer in one streaming pass: moments in float64, over everything and by output and input channel.

    Args:
        layer: a ``Layer``, an array or a tensor.
        progress: called with the finished fraction; may raise ``Cancelled``.

    Raises:
        QuantizationError: an empty weight, NaN or infinite weights.
    """
    from workbench.kernels.extrema import group_extrema
    from workbench.kernels.moments import gather_columns, new_columns, power_sums

    matrix = as_matrix(layer)
    rows, columns = matrix.weights.shape
    down = new_columns(columns)
    across = np.empty((rows, 5))
    ends = np.empty((rows, 2))
    centre: float | None = None
    for start, block in matrix.weights.blocks(step_bytes(matrix)):
        stop = start + len(block)
        low, high, _ = group_extrema(block, columns)
        ends[start:stop, 0], ends[start:stop, 1] = low[:, 0], high[:, 0]
        if not np.isfinite(ends[start:stop]).all():
            group_ranges(matrix, PerAxis(0))  # counts what is not finite, and raises
        if centre is None:
            centre = float(np.mean(block[: max(1, (1 << 16) // columns)], dtype=np.float64))
        across[start:stop] = power_sums(block, centre, down)
        if progress is not None:
            progress(stop / rows)
    centre = centre or 0.0
    gathered = gather_columns(down)
    by_row = _channels(across[:, :4].T, columns, centre, ends[:, 0], ends[:, 1])
    by_column = _channels(gathered[:4], rows, centre, gathered[4], gathered[5])
    total = across.sum(axis=0)
    whole = _channels(total[:4, None], rows * columns, centre, ends[:, :1].min(axis=0), ends[:, 1:].max(axis=0))
    return WeightStatistics(
        name=matrix.name,
        shape=matrix.shape,
        count=rows * columns,
        mean=float(whole.mean[0]),
        std=float(whole.std[0]),
        minimum=float(whole.minimum[0]),
        maximum=float(whole.maximum[0]),
        skewness=float(whole.skewness[0]),
        kurtosis=float(whole.kurtosis[0]),
        zeros=int(total[4]),
        output=by_row,
        input=by_column,
    )


def _channels(
    sums: Float[np.ndarray, "4 channels"], count: int, centre: float, low: np.ndarray, high: np.ndarray
) -> ChannelStatistics:
    """Turn sums of (w - centre)^k into central moments."""
    r1, r2, r3, r4 = (part / count for part in sums)
    variance = np.maximum(r2 - r1 * r1, 0.0)
    # Equal weights leave only rounding; anything below it is no spread.
    variance[variance <= 1e-14 * r2] = 0.0
    third = r3 - 3.0 * r1 * r2 + 2.0 * r1**3
    fourth = r4 - 4.0 * r1 * r3 + 6.0 * r1 * r1 * r2 - 3.0 * r1**4
    spread = variance > 0.0
    nan = np.full_like(variance, np.nan)
    return ChannelStatistics(
        mean=centre + r1,
        std=np.sqrt(variance),
        minimum=np.asarray(low, dtype=np.float64),
        maximum=np.asarray(high, dtype=np.float64),
        skewness=np.divide(third, variance**1.5, out=nan.copy(), where=spread),
        kurtosis=np.divide(fourth, variance**2, out=nan.copy(), where=spread),
    )


@dataclass(frozen=True, repr=False, eq=False)
class LargestWeights:
    """The weights of largest magnitude, largest first (ties: in the order of the matrix)."""

    values: Float[np.ndarray, " k"]
    rows: Int[np.ndarray, " k"]
    """Output channel of each."""
    columns: Int[np.ndarray, " k"]
    """Input channel of each (column of the matrix view)."""

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each weight."""
        import pandas as pd

        return pd.DataFrame({"row": self.rows, "column": self.columns, "value": self.values})

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return (
            f"LargestWeights({len(self)} weights, {self.values[0]:.4g} at row {self.rows[0]}, column {self.columns[0]})"
        )


def largest_weights(layer: Any, k: int = 20) -> LargestWeights:
    """Find the k weights of largest magnitude and where they are.

    Args:
        layer: a ``Layer``, an array or a tensor.
        k: how many; all of them where the layer holds fewer.

    Raises:
        QuantizationError: k below 1, an empty weight, NaN or infinite weights.
    """
    from workbench.kernels.extrema import group_extrema

    if k < 1:
        message = f"ask for at least 1 of the largest weights, not {k}"
        raise QuantizationError(message)
    matrix = as_matrix(layer)
    columns = matrix.weights.shape[1]
    kept = (np.empty(0), np.empty(0, dtype=np.int64))
    for start, block in matrix.weights.blocks(step_bytes(matrix)):
        low, high, _ = group_extrema(block, columns)
        reach = np.maximum(-low[:, 0], high[:, 0]).astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            group_ranges(matrix, PerTensor())  # counts what is not finite, and raises
        for row in np.argsort(-reach, kind="stable"):
            least = np.abs(kept[0][-1]) if len(kept[0]) >= k else -1.0
            if reach[row] < least:
                break
            kept = _keep(kept, block[row].astype(np.float64), (start + int(row)) * columns, k)
    rows, positions = np.divmod(kept[1], columns)
    return LargestWeights(kept[0], rows, positions)


def _keep(kept: tuple[np.ndarray, np.ndarray], row: np.ndarray, first: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge a row into the k largest: by magnitude, then by position."""
    least = np.abs(kept[0][-1]) if len(kept[0]) >= k else -1.0
    candidates = np.flatnonzero(np.abs(row) >= least)
    values = np.concatenate([kept[0], row[candidates]])
    places = np.concatenate([kept[1], first + candidates])
    order = np.lexsort((places, -np.abs(values)))[:k]
    return values[order], places[order]


@dataclass(frozen=True, repr=False, eq=False)
class Histogram:
    """Counts of weights between edges."""

    edges: Float[np.ndarray, " edges"]
    counts: Float[np.ndarray, " bins"]

    @property
    def centers(self) -> Float[np.ndarray, " bins"]:
        """Middle of each bin."""
        return (self.edges[:-1] + self.edges[1:]) / 2.0

    @property
    def density(self) -> Float[np.ndarray, " bins"]:
        """Share of weights per unit of weight; integrates to the share inside the edges."""
        return self.counts / (max(self.counts.sum(), 1.0) * np.diff(self.edges))

    def __repr__(self) -> str:
        return f"Histogram({len(self.counts)} bins from {self.edges[0]:.4g} to {self.edges[-1]:.4g})"


def histogram(layer: Any, bins: int | np.ndarray = 256, spacing: str = "linear") -> Histogram:
    """Count a layer's weights in bins, every weight, as ``numpy.histogram`` does on their float64 values.

    Args:
        layer: a ``Layer``, an array or a tensor.
        bins: how many between the smallest and the largest weight, or the edges themselves (ascending).
        spacing: ``linear``, or ``log``: bins of equal ratio in magnitude on either side of zero, over six decades below
            the absmax, and one around zero.

    Raises:
        QuantizationError: fewer than 1 bin, unknown spacing, an empty weight, NaN or infinite weights.
    """
    from workbench.quantization.sketching import measure_ranges

    matrix = as_matrix(layer)
    if np.ndim(bins) == 1:
        edges = np.ascontiguousarray(bins, dtype=np.float64)
        if len(edges) < 2 or not (np.diff(edges) > 0.0).all():
            message = "edges of a histogram are at least two numbers, ascending"
            raise QuantizationError(message)
        return Histogram(edges, _count(matrix, edges))
    if int(bins) < 1 or spacing not in {"linear", "log"}:
        message = f"a histogram has at least 1 bin and linear or log spacing, not {bins} and {spacing!r}"
        raise QuantizationError(message)
    ranges = measure_ranges(matrix, PerAxis(0))
    absmax = float(ranges.absmax.max())
    if spacing == "log":
        side = max(int(bins) // 2, 1)
        positive = np.geomspace(1e-6, 1.0, side + 1)[1:] * (absmax or 1.0)
        edges = np.concatenate([-positive[::-1], positive])
    else:
        low, high = float(ranges.low.min()), float(ranges.high.max())
        edges = np.histogram_bin_edges([], int(bins), (low, high))
    return Histogram(edges, _count(matrix, edges))


def _count(matrix: Matrix, edges: np.ndarray) -> np.ndarray:
    """Count weights between edges; 16-bit weights by their distinct codes."""
    from workbench.kernels.binning import count_codes
    from workbench.kernels.moments import histogram_counts

    if matrix.weights.dtype.itemsize == 2:
        codes = np.zeros(1 << 16, dtype=np.int64)
        for _, block in matrix.weights.blocks(step_bytes(matrix)):
            codes += count_codes(block)
        occurs = np.flatnonzero(codes)
        with np.errstate(invalid="ignore"):
            values = occurs.astype(np.uint16).view(matrix.weights.dtype).astype(np.float64)
        if not np.isfinite(values).all():
            group_ranges(matrix, PerTensor())  # counts what is not finite, and raises
        return np.histogram(values, edges, weights=codes[occurs].astype(np.float64))[0]
    counts = np.zeros(len(edges) - 1)
    for _, block in matrix.weights.blocks(step_bytes(matrix)):
        counts += histogram_counts(block, edges)
    return counts


@dataclass(frozen=True, repr=False, eq=False)
class QuantilePoints:
    """Quantiles of a layer's weights against those of a Gaussian: a straight line where the weights are Gaussian."""

    gaussian: Float[np.ndarray, " points"]
    """Quantiles of the standard Gaussian, in standard deviations."""
    weights: Float[np.ndarray, " points"]
    """Quantiles of the weights."""
    mean: float
    std: float
    """The line that a Gaussian with the weights' moments would follow: mean + std * gaussian."""
    approximate: bool
    """Whether quantiles are right to a sketch's bin (2^-10 relative) instead of exact."""

    def __repr__(self) -> str:
        return f"QuantilePoints({len(self.gaussian)} points, mean={self.mean:.4g}, std={self.std:.4g})"


def qq_points(layer: Any, points: int = 257) -> QuantilePoints:
    """Return quantiles of a layer's weights against a Gaussian's.

    Points are spaced evenly on the Gaussian axis, out to the quantiles of the first and last weight (plotting position
    (i - 1/2) / count), so that the tails are seen.

    Args:
        layer: a ``Layer``, an array or a tensor.
        points: how many, at least 2.

    Raises:
        QuantizationError: fewer than 2 points, an empty weight, NaN or infinite weights.
    """
    if points < 2:
        message = f"a quantile plot has at least 2 points, not {points}"
        raise QuantizationError(message)
    made = sketch(layer, "tensor", "absmax")
    normal = NormalDist()
    reach = -normal.inv_cdf(0.5 / made.count) if made.count > 1 else 0.0
    gaussian = np.linspace(-reach, reach, points)
    probability = np.array([normal.cdf(z) for z in gaussian])
    rank = np.clip(np.ceil(probability * made.count - 1e-9), 1, made.count)
    held = np.cumsum(made.n)
    index = np.minimum(np.searchsorted(held, rank, side="left"), made.bins - 1)
    if made.weights is not None:
        values = made.weights
    else:
        values = np.divide(made.m1, made.m0, out=np.zeros_like(made.m0), where=made.m0 > 0.0) * made.absmax
    total = float((made.n * values).sum())
    mean = total / made.count
    std = float(np.sqrt(max(made.energy / made.count - mean * mean, 0.0)))
    return QuantilePoints(gaussian, values[index], mean, std, approximate=not made.exact)

"""What each scale group of a weight reaches: smallest, largest, extreme weight, and percentiles of abs(w).

Everything is read by row blocks; a percentile over a whole tensor is exact too, selected digit by digit from the bit
patterns instead of sorting a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids.grid import Normalization
from workbench.quantization.blocks import row_blocks, rows_of
from workbench.quantization.granularity import Granularity
from workbench.quantization.source import Matrix


@dataclass(frozen=True, eq=False)
class GroupRanges:
    """The reach of every scale group, float64, in the granularity's scale shape; zero always lies inside."""

    low: Float[np.ndarray, "rows groups"]
    """min(w, 0)."""
    high: Float[np.ndarray, "rows groups"]
    """max(w, 0)."""
    extreme: Float[np.ndarray, "rows groups"]
    """The weight of largest magnitude, the first in order where two tie; its sign is what ``signed`` grids need."""

    @property
    def absmax(self) -> Float[np.ndarray, "rows groups"]:
        """max|w|."""
        return np.maximum(-self.low, self.high)

    def reach(self, normalization: Normalization) -> Float[np.ndarray, "rows groups"]:
        """Return the magnitude of the unclipped scale: the width of the range, or the absmax."""
        return self.high - self.low if normalization == "range" else self.absmax

    def rows(self, start: int, stop: int) -> GroupRanges:
        """Return the ranges of some rows (all when one range serves the whole tensor)."""
        return GroupRanges(*(rows_of(part, start, stop) for part in (self.low, self.high, self.extreme)))

    def limited(self, magnitude: Float[np.ndarray, "rows groups"]) -> GroupRanges:
        """Cut each range at plus and minus a magnitude; where that is 0, leave it as it is."""
        limit = np.where(magnitude > 0.0, magnitude, np.inf)
        return GroupRanges(
            np.maximum(self.low, -limit), np.minimum(self.high, limit), np.clip(self.extreme, -limit, limit)
        )


def group_ranges(matrix: Matrix, granularity: Granularity, *, extremes: bool = False) -> GroupRanges:
    """Measure the range of every scale group in one pass.

    Args:
        matrix: the weight.
        granularity: what shares a scale.
        extremes: whether the sign of the largest weight must be right where +x and -x tie (costs a little more).

    Raises:
        QuantizationError: the weight holds NaN or infinite values; the message names the layer and how many.

    >>> from workbench.quantization import PerGroup, as_matrix
    >>> group_ranges(as_matrix(np.array([[1.0, -2.0, 3.0]])), PerGroup(2)).absmax
    array([[2., 3.]])
    """
    rows, columns = matrix.weights.shape
    shape = granularity.scale_shape(rows, columns)
    low, high, extreme = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    starts = np.arange(0, columns, granularity.group_size(columns))
    shared = shape[0] == 1
    with np.errstate(invalid="ignore"):
        for start, block in row_blocks(matrix.weights):
            wide = block if block.dtype.itemsize >= 4 else block.astype(np.float32)
            least = np.minimum(np.minimum.reduceat(wide, starts, axis=1), 0).astype(np.float64)
            most = np.maximum(np.maximum.reduceat(wide, starts, axis=1), 0).astype(np.float64)
            if not (np.isfinite(least).all() and np.isfinite(most).all()):
                raise _not_finite(matrix)
            first = np.where(most >= -least, most, least)
            if extremes:
                first = _settle_ties(wide, starts, least, most, first)
            if not shared:
                stop = start + len(block)
                low[start:stop], high[start:stop], extreme[start:stop] = least, most, first
                continue
            low = np.minimum(low, least.min(axis=0, keepdims=True))
            high = np.maximum(high, most.max(axis=0, keepdims=True))
            strongest = np.take_along_axis(first, np.argmax(np.abs(first), axis=0, keepdims=True), axis=0)
            extreme = np.where(np.abs(strongest) > np.abs(extreme), strongest, extreme)
    return GroupRanges(low, high, extreme)


def _settle_ties(
    block: np.ndarray, starts: np.ndarray, least: np.ndarray, most: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """Take, where +x and -x are both largest in magnitude, the one that comes first in the row."""
    tied = (most == -least) & (most > 0.0)
    if not tied.any():
        return first
    columns = block.shape[1]
    sizes = np.diff(np.append(starts, columns))
    reaches = np.abs(block) == np.repeat(most, sizes, axis=1)
    position = np.minimum.reduceat(np.where(reaches, np.arange(columns), columns), starts, axis=1)
    weight = np.take_along_axis(block, np.minimum(position, columns - 1), axis=1).astype(np.float64)
    return np.where(tied, weight, first)


def _not_finite(matrix: Matrix) -> QuantizationError:
    """Count what is not finite over the whole weight, for the message."""
    nans = infinities = 0
    for _, block in row_blocks(matrix.weights):
        wide = block.astype(np.float32) if block.dtype.itemsize < 4 else block
        nans += int(np.isnan(wide).sum())
        infinities += int(np.isinf(wide).sum())
    total = nans + infinities
    message = (
        f"{matrix.name} holds {total} non-finite weight{'s' if total > 1 else ''} "
        f"({nans} NaN, {infinities} infinite); only finite weights can be quantized"
    )
    return QuantizationError(message)


def group_percentiles(matrix: Matrix, granularity: Granularity, percent: float) -> Float[np.ndarray, "rows groups"]:
    """Return the exact percentile of abs(w) in every scale group, float64.

    Between two order statistics the value is interpolated linearly, as ``numpy.percentile`` does.

    Args:
        matrix: finite weights.
        granularity: what shares a scale.
        percent: 0 to 100.

    >>> from workbench.quantization import PerTensor, as_matrix
    >>> group_percentiles(as_matrix(np.array([[1.0, -2.0, 3.0]])), PerTensor(), 75.0)
    array([[2.5]])
    """
    rows, columns = matrix.weights.shape
    shape = granularity.scale_shape(rows, columns)
    if shape == (1, 1):
        return np.array([[_tensor_percentile(matrix, percent)]])
    size = granularity.group_size(columns)
    whole = columns // size
    result = np.empty(shape)
    for start, block in row_blocks(matrix.weights):
        stop = start + len(block)
        magnitude = np.abs(block if block.dtype.itemsize >= 4 else block.astype(np.float32))
        result[start:stop, :whole] = _percentile(magnitude[:, : whole * size].reshape(-1, whole, size), percent)
        if whole < shape[1]:
            result[start:stop, whole] = _percentile(magnitude[:, whole * size :], percent)
    return result


def _ranks(count: int, percent: float) -> tuple[int, int, float]:
    """Return the two ranks (from 0) that a percentile lies between, and how far towards the second."""
    place = (count - 1) * percent / 100.0
    below = min(int(place), count - 1)
    return below, min(below + 1, count - 1), place - below


def _percentile(magnitude: np.ndarray, percent: float) -> np.ndarray:
    """Return the percentile along the last axis, float64."""
    below, above, fraction = _ranks(magnitude.shape[-1], percent)
    parted = np.partition(magnitude, (below, above), axis=-1)
    low = parted[..., below].astype(np.float64)
    return low + (parted[..., above].astype(np.float64) - low) * fraction


def _tensor_percentile(matrix: Matrix, percent: float) -> float:
    """Return the percentile of abs(w) over all weights.

    The bit pattern of a non-negative float grows with its value, so counting 16-bit digits from the top finds any
    order statistic in one pass for 16-bit weights, two for float32.
    """
    rows, columns = matrix.weights.shape
    below, above, fraction = _ranks(rows * columns, percent)
    low, high = (_order_statistic(matrix, rank) for rank in (below, above))
    return low + (high - low) * fraction


def _order_statistic(matrix: Matrix, rank: int) -> float:
    """Return the ``rank``-th smallest abs(w), counting from 0."""
    dtype = matrix.weights.dtype
    width = dtype.itemsize * 8
    pattern = np.dtype(f"u{dtype.itemsize}")
    sign = pattern.type((1 << (width - 1)) - 1)
    digit = min(16, width)
    prefix = 0
    for shift in range(width - digit, -1, -digit):
        counts = np.zeros(1 << digit, dtype=np.int64)
        for _, block in row_blocks(matrix.weights):
            bits = (block.view(pattern) & sign).ravel()
            if shift + digit < width:
                bits = bits[bits >> pattern.type(shift + digit) == prefix]
            counts += np.bincount(
                ((bits >> pattern.type(shift)) & pattern.type((1 << digit) - 1)).astype(np.int64), minlength=1 << digit
            )
        ends = np.cumsum(counts)
        value = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[value] - counts[value])
        prefix = prefix << digit | value
    return float(np.array([prefix], dtype=pattern).view(dtype)[0])

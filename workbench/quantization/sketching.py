"""The passes that make a sketch: ranges, then bins, block by block; or a count of every distinct weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from workbench.grids.grid import Grid
from workbench.quantization.granularity import Granularity, PerTensor
from workbench.quantization.ranges import GroupRanges, group_ranges
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import scale_and_offset
from workbench.quantization.sketch import Progress, Sketch
from workbench.quantization.source import ArrayWeights, Matrix, as_matrix

#: Bytes of stored weights that one step of a pass reads; progress is told and cancelling is possible in between.
STEP_BYTES = 8 << 20

#: The same where the weights lie in memory: a step costs nothing there, but starting threads does.
STEP_BYTES_IN_MEMORY = 64 << 20


@dataclass(frozen=True)
class Scaling:
    """How a sketch's scales follow from group ranges."""

    normalization: str
    scale_format: str = "float32"
    zero_steps: int = 0
    grid: Grid | None = None

    @classmethod
    def of(cls, normalization: str, grid: Grid | None) -> Scaling:
        """Return how a plain sketch, or a sketch under a grid's own scales, is normalised."""
        if grid is None:
            return cls(normalization)
        steps = len(grid.levels) - 1 if grid.integer_zero_point else 0
        scale_format = check_scale_format(None, grid)
        plain = scale_format == "float32" and not steps
        return cls(normalization, scale_format, steps, None if plain else grid)

    @property
    def words(self) -> str:
        """What the cache key says of it."""
        unit = "" if self.grid is None else f",{self.grid}"
        return f"{self.normalization},{self.scale_format},{self.zero_steps}{unit}"

    @property
    def needs_whole(self) -> bool:
        """Whether one group's scale depends on the whole tensor's largest one (NVFP4's second level)."""
        return self.scale_format == "e4m3"

    def __call__(self, ranges: GroupRanges, largest: float) -> tuple[np.ndarray, np.ndarray]:
        """Return scale (float32) and offset (float64) of each group."""
        if self.grid is not None:
            rounded, offset = scale_and_offset(ranges, self.grid, 1.0, self.scale_format, largest)
            return rounded.scale, offset
        if self.normalization == "range":
            width = ranges.high - ranges.low
            return width.astype(np.float32), np.divide(-ranges.low, width, out=np.zeros_like(width), where=width > 0.0)
        full = ranges.absmax
        if self.normalization == "signed":
            full = np.where(ranges.extreme > 0.0, -full, full)
        return full.astype(np.float32), np.zeros_like(full)


def make_sketch(layer: Any, granularity: Granularity, scaling: Scaling, progress: Progress | None) -> Sketch:
    """Make a sketch from the weights."""
    matrix = as_matrix(layer)
    tell = progress or (lambda fraction: None)
    tell(0.0)
    if isinstance(granularity, PerTensor) and matrix.weights.dtype.itemsize == 2:
        made = _count_weights(matrix, scaling, tell)
    else:
        made = _bin_weights(matrix, granularity, scaling, tell)
    tell(1.0)
    return made


def step_bytes(matrix: Matrix) -> int:
    """Return how many bytes of weights a pass takes at a time."""
    return STEP_BYTES_IN_MEMORY if isinstance(matrix.weights, ArrayWeights) else STEP_BYTES


def measure_ranges(
    matrix: Matrix, granularity: Granularity, progress: Progress | None = None, share: tuple[float, float] = (0.0, 1.0)
) -> GroupRanges:
    """Measure every group's range with the compiled pass (the same numbers as ``group_ranges`` gives).

    Args:
        matrix: the weight.
        granularity: what shares a scale.
        progress: told the finished fraction, mapped into ``share``.
        share: from where to where this pass counts in the caller's progress.

    Raises:
        QuantizationError: NaN or infinite weights; the message names the layer and how many.
    """
    from workbench.kernels.extrema import group_extrema

    rows, columns = matrix.weights.shape
    shape = granularity.scale_shape(rows, columns)
    size = granularity.group_size(columns)
    shared = isinstance(granularity, PerTensor)
    parts = [np.empty((rows, shape[1])) for _ in range(3)]
    for start, block in matrix.weights.blocks(step_bytes(matrix)):
        found = group_extrema(block, size)
        for part, values in zip(parts, found, strict=True):
            part[start : start + len(block)] = values
        if progress is not None:
            progress(share[0] + (share[1] - share[0]) * (start + len(block)) / rows)
    return finite_ranges(matrix, granularity, parts, shared=shared)


def finite_ranges(matrix: Matrix, granularity: Granularity, parts: list[np.ndarray], *, shared: bool) -> GroupRanges:
    """Turn extrema (low, high, peak of each row and group) into ranges; NaN and infinity are refused."""
    low, high, peak = (np.asarray(part, dtype=np.float64) for part in parts)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        group_ranges(matrix, granularity)  # counts what is not finite, and raises
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if not shared:
        return GroupRanges(low, high, peak)
    first = np.argmax(np.abs(peak), axis=0, keepdims=True)
    return GroupRanges(
        low.min(axis=0, keepdims=True), high.max(axis=0, keepdims=True), np.take_along_axis(peak, first, axis=0)
    )


def _bin_weights(matrix: Matrix, granularity: Granularity, scaling: Scaling, tell: Progress) -> Sketch:
    """Sort every weight into bins; row blocks are read once where each row has its own scales."""
    from workbench.kernels.binning import bin_rows, gather_bins, new_bins
    from workbench.kernels.extrema import group_extrema
    from workbench.quantization.blocks import rows_of

    rows, columns = matrix.weights.shape
    size = granularity.group_size(columns)
    linear = scaling.normalization == "range"
    bins = new_bins(linear=linear)
    low, high, extreme = 0.0, 0.0, 0.0
    energy = 0.0
    scale = offset = None
    begun = 0.0
    if isinstance(granularity, PerTensor) or scaling.needs_whole:
        begun = 0.4
        whole = measure_ranges(matrix, granularity, tell, (0.0, begun))
        scale, offset = scaling(whole, float(whole.reach(scaling.normalization).max()))  # type: ignore[arg-type]
    for start, block in matrix.weights.blocks(step_bytes(matrix)):
        stop = start + len(block)
        ranges = finite_ranges(matrix, granularity, list(group_extrema(block, size)), shared=False)
        if scale is None or offset is None:
            some, shift = scaling(ranges, 0.0)
        else:
            some, shift = rows_of(scale, start, stop), rows_of(offset, start, stop)
        bin_rows(block, some, shift, size, bins, linear=linear)
        low, high = min(low, float(ranges.low.min())), max(high, float(ranges.high.max()))
        strongest = float(ranges.extreme.ravel()[np.argmax(np.abs(ranges.extreme))])
        extreme = strongest if abs(strongest) > abs(extreme) else extreme
        if linear:
            energy += _energy(block)
        tell(begun + (1.0 - begun) * stop / rows)
    value_min, value_max, moments = gather_bins(bins, linear=linear)
    return Sketch(
        name=matrix.name,
        granularity=str(granularity),
        normalization=scaling.normalization,
        count=rows * columns,
        rows=rows,
        columns=columns,
        value_min=value_min,
        value_max=value_max,
        n=np.ascontiguousarray(moments[:, 0]),
        m0=np.ascontiguousarray(moments[:, 1]),
        m1=np.ascontiguousarray(moments[:, 2]),
        m2=np.ascontiguousarray(moments[:, 3]),
        absmax=max(-low, high),
        energy=energy if linear else float(moments[:, 3].sum()),
        exact=False,
        low=low,
        high=high,
        extreme=extreme,
        scale_format=scaling.scale_format,
        zero_steps=scaling.zero_steps,
        offset_moment=np.ascontiguousarray(moments[:, 4]) if linear else None,
        offset_energy=float(moments[:, 5].sum()) if linear else 0.0,
        bfloat16=not linear and scaling.grid is None and matrix.weights.dtype == ml_dtypes.bfloat16,
        clips_freely=scaling.grid is None,
    )


def _energy(block: np.ndarray) -> float:
    """Return the sum of w^2 of a block, in float64."""
    from workbench.kernels.moments import energy

    return energy(block)


def _count_weights(matrix: Matrix, scaling: Scaling, tell: Progress) -> Sketch:
    """Count every distinct 16-bit weight: nothing is lost."""
    from workbench.kernels.binning import count_codes

    rows, columns = matrix.weights.shape
    counts = np.zeros(1 << 16, dtype=np.int64)
    for start, block in matrix.weights.blocks(step_bytes(matrix)):
        counts += count_codes(block)
        tell((start + len(block)) / rows)
    occurs = np.flatnonzero(counts)
    with np.errstate(invalid="ignore"):
        values = occurs.astype(np.uint16).view(matrix.weights.dtype).astype(np.float64)
    if not np.isfinite(values).all():
        group_ranges(matrix, PerTensor())  # counts what is not finite, and raises
    # Both zeros are one weight.
    weights, inverse = np.unique(values + 0.0, return_inverse=True)
    n = np.bincount(inverse, weights=counts[occurs].astype(np.float64), minlength=len(weights))
    low, high = min(float(weights[0]), 0.0), max(float(weights[-1]), 0.0)
    extreme = high if high > -low else low
    if high == -low and high > 0.0:
        extreme = float(measure_ranges(matrix, PerTensor()).extreme[0, 0])  # the one that comes first
    ranges = GroupRanges(np.array([[low]]), np.array([[high]]), np.array([[extreme]]))
    scale, offset = scaling(ranges, float(ranges.reach(scaling.normalization).max()))  # type: ignore[arg-type]
    s, o = float(scale[0, 0]), float(offset[0, 0])
    u = weights / s + o if s != 0.0 else np.full_like(weights, o)
    order = slice(None, None, -1) if s < 0.0 else slice(None)
    u, n, weights = (np.ascontiguousarray(part[order]) for part in (u, n, weights))
    return Sketch(
        name=matrix.name,
        granularity="tensor",
        normalization=scaling.normalization,
        count=rows * columns,
        rows=rows,
        columns=columns,
        value_min=u,
        value_max=u,
        n=n,
        m0=n * s * s,
        m1=n * s * (s * u),
        m2=n * (s * u) ** 2,
        absmax=max(-low, high),
        energy=float(np.sum(n * weights * weights)),
        exact=True,
        low=low,
        high=high,
        extreme=extreme,
        scale_format=scaling.scale_format,
        zero_steps=scaling.zero_steps,
        weights=weights,
        offset_moment=n * s * s * o if scaling.normalization == "range" else None,
        offset_energy=float(n.sum() * s * s * o * o),
    )

"""The exact reconstruction error, in one fused pass over the stored weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.grids.grid import Grid
from workbench.quantization.blocks import rows_of
from workbench.quantization.checks import as_grid, check_clip
from workbench.quantization.granularity import Granularity, PerTensor, parse_granularity
from workbench.quantization.ranges import GroupRanges
from workbench.quantization.report import ErrorReport
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import (
    CANDIDATE_CLIPS,
    CANDIDATE_CLIPS_E8M0,
    AbsMax,
    BestClip,
    ScaleRule,
    find_scales,
    parse_scale_rule,
    scale_and_offset,
)
from workbench.quantization.sketch import Progress
from workbench.quantization.sketching import finite_ranges, measure_ranges, step_bytes
from workbench.quantization.source import Matrix, as_matrix

#: Bytes of stored weights at a time: scales and errors of every candidate and group are held beside them.
_CANDIDATE_BYTES = 8 << 20


def exact_error(  # noqa: PLR0917 - the words of the call, in the order they are spoken
    layer: Any,
    grid: str | Grid,
    granularity: str | Granularity = "channel",
    scale: str | ScaleRule = "absmax",
    clip: float = 1.0,
    per_channel: bool = False,
    scale_format: str | None = None,
    progress: Progress | None = None,
) -> ErrorReport:
    """Return the exact error of quantizing a layer: what ``error(layer, quantize(layer, ...))`` gives, much faster.

    The stored codes are read as they are and compared in place; no float copy of the weights is made. All sums run in
    float64.

    Args:
        layer: a ``Layer``, an array or a tensor (``as_matrix``).
        grid: any grid, or its text form.
        granularity: what shares a scale.
        scale: ``absmax``, ``percentile:99.9`` or ``mse``, or a scale rule.
        clip: fraction of the rule's scale to keep, in (0, 1].
        per_channel: whether the report carries the mse of each row.
        scale_format: how scales are stored; None for the grid's own, else float32.
        progress: called with the finished fraction; may raise ``Cancelled``.

    Raises:
        QuantizationError: an unknown granularity, scale rule or format, a clip out of range, an empty weight, NaN or
            infinite weights.
    """
    grid = as_grid(grid)
    granularity = parse_granularity(granularity)
    rule = parse_scale_rule(scale)
    scale_format = check_scale_format(scale_format, grid)
    check_clip(clip)
    if grid.fitted:
        return _fitted_error(layer, grid, granularity, rule, clip, scale_format, per_channel, progress)
    matrix = as_matrix(layer)
    tell = progress or (lambda fraction: None)
    tell(0.0)
    scales = _scales(matrix, grid, granularity, rule, clip, scale_format, tell)
    return _measure(matrix, grid, granularity, scales, clip, scale_format, per_channel=per_channel, tell=tell)


def _fitted_error(  # noqa: PLR0917
    layer: Any,
    grid: Grid,
    granularity: Granularity,
    rule: ScaleRule,
    clip: float,
    scale_format: str,
    per_channel: bool,
    progress: Progress | None,
) -> ErrorReport:
    """Fit the grid to the layer, then compare: there is no one pass where every group first finds its own levels."""
    from workbench.quantization.metrics import error
    from workbench.quantization.quantize import quantize

    tell = progress or (lambda fraction: None)
    tell(0.0)
    quantized = quantize(layer, grid, granularity, rule, clip, scale_format)
    tell(0.9)
    report = error(layer, quantized, per_channel=per_channel)
    tell(1.0)
    return report


def _scales(  # noqa: PLR0917
    matrix: Matrix,
    grid: Grid,
    granularity: Granularity,
    rule: ScaleRule,
    clip: float,
    scale_format: str,
    tell: Progress,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return scale and offset where the whole tensor decides them; None where each row block gives its own."""
    if isinstance(rule, AbsMax):
        if not isinstance(granularity, PerTensor) and scale_format != "e4m3":
            return None
        ranges = measure_ranges(matrix, granularity, tell, (0.0, 0.4))
        largest = float(ranges.reach(grid.normalization).max())
        rounded, offset = scale_and_offset(ranges, grid, clip, scale_format, largest)
    elif isinstance(rule, BestClip):
        ranges = measure_ranges(matrix, granularity, tell, (0.0, 0.05))
        clips = best_group_clips(
            matrix, grid, granularity, rule.candidates, ranges=ranges, scale_format=scale_format, clip=clip
        )
        largest = float(ranges.reach(grid.normalization).max())
        rounded, offset = scale_and_offset(ranges, grid, clips, scale_format, largest)
    else:
        found = find_scales(matrix, grid, granularity, rule, clip=clip, scale_format=scale_format)
        return found.scale, found.offset
    return rounded.scale, offset


def _measure(  # noqa: PLR0917
    matrix: Matrix,
    grid: Grid,
    granularity: Granularity,
    scales: tuple[np.ndarray, np.ndarray] | None,
    clip: float,
    scale_format: str,
    *,
    per_channel: bool,
    tell: Progress,
) -> ErrorReport:
    """Run the pass, row block by row block, and gather the sums."""
    from workbench.kernels.exact import absmax_error_sums, error_sums
    from workbench.kernels.extrema import group_extrema

    rows, columns = matrix.weights.shape
    size = granularity.group_size(columns)
    error, weight, decoded, largest, steps = 0.0, 0.0, 0.0, 0.0, 0.0
    channels = np.empty(rows) if per_channel else None
    at_once = scales is None and scale_format == "float32" and grid.normalization != "range"
    for start, block in matrix.weights.blocks(step_bytes(matrix)):
        stop = start + len(block)
        sums = absmax_error_sums(block, grid, clip, size) if at_once else None
        if sums is None:  # two passes over the block; this is also the way that refuses what is not finite
            if scales is None:
                ranges = finite_ranges(matrix, granularity, list(group_extrema(block, size)), shared=False)
                rounded, offset = scale_and_offset(ranges, grid, clip, scale_format, 0.0)
                scale = rounded.scale
            else:
                scale, offset = rows_of(scales[0], start, stop), rows_of(scales[1], start, stop)
            sums = error_sums(block, grid, scale, offset, size)
        error += float(sums.error.sum())
        weight += float(sums.weight.sum())
        decoded += float(sums.decoded.sum())
        largest = max(largest, float(sums.largest.max()))
        steps = max(steps, float(sums.steps.max()))
        if channels is not None:
            channels[start:stop] = sums.error / columns
        tell(stop / rows)
    return ErrorReport.from_sums(
        count=rows * columns,
        error=error,
        weight=weight,
        cross=(weight + decoded - error) / 2.0,
        decoded=decoded,
        max_abs=largest,
        max_steps=steps / float(np.max(np.diff(grid.levels))),
        per_channel=channels,
    )


def best_group_clips(
    layer: Any,
    grid: str | Grid,
    granularity: str | Granularity = "channel",
    candidates: tuple[float, ...] | None = None,
    *,
    ranges: GroupRanges | None = None,
    scale_format: str | None = None,
    clip: float = 1.0,
) -> Float[np.ndarray, "rows groups"]:
    """Return, for every scale group, the candidate clip with the smallest exact sum of squared errors.

    Of two equal errors the larger clip wins. The same answer as trying each candidate in numpy.

    Args:
        layer: anything ``as_matrix`` takes, or a ``Matrix``.
        grid: any scalar grid.
        granularity: what shares a scale.
        candidates: fractions of each group's reach; None for ``CANDIDATE_CLIPS`` (powers of two for e8m0 scales).
        ranges: the groups' ranges where they are known (a percentile rule's, say); None measures them.
        scale_format: how scales are stored; None for the grid's own, else float32.
        clip: multiplies every candidate.

    Raises:
        QuantizationError: see ``exact_error``.
    """
    from workbench.kernels.exact import candidate_errors

    grid = as_grid(grid)
    granularity = parse_granularity(granularity)
    matrix = layer if isinstance(layer, Matrix) else as_matrix(layer)
    scale_format = check_scale_format(scale_format, grid)
    if candidates is None:
        candidates = CANDIDATE_CLIPS_E8M0 if scale_format == "e8m0" else CANDIDATE_CLIPS
    tried = np.array([clip * candidate for candidate in sorted(candidates, reverse=True)])
    if ranges is None:
        ranges = measure_ranges(matrix, granularity)
    columns = matrix.weights.shape[1]
    size = granularity.group_size(columns)
    largest = float(ranges.reach(grid.normalization).max())
    shared = isinstance(granularity, PerTensor)
    totals = np.zeros(len(tried))
    best = np.empty(ranges.low.shape)
    for start, block in matrix.weights.blocks(_CANDIDATE_BYTES):
        part = ranges.rows(start, start + len(block))
        pairs = [scale_and_offset(part, grid, candidate, scale_format, largest) for candidate in tried]
        scales = np.stack([rounded.scale for rounded, _ in pairs])
        errors = candidate_errors(block, grid, scales, np.stack([offset for _, offset in pairs]), size)
        if shared:
            totals += errors.sum(axis=(1, 2))
        else:
            best[start : start + len(block)] = tried[np.argmin(errors, axis=0)]
    return np.full((1, 1), tried[np.argmin(totals)]) if shared else best

"""Importance-weighted rounding: the scale of each group with the smallest error as the layer's inputs weigh it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import QuantizationError
from workbench.grids.grid import Grid
from workbench.methods.encoding import indices_under, tensor_of
from workbench.methods.method import Method, Need, Outcome, register
from workbench.methods.run import Run, Trace
from workbench.methods.task import LayerTask
from workbench.quantization.granularity import PerTensor
from workbench.quantization.ranges import group_ranges
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import CANDIDATE_CLIPS, CANDIDATE_CLIPS_E8M0, Scales, scale_and_offset
from workbench.quantization.source import as_matrix

#: Candidates that are measured at once, so that their errors stay small beside the weight.
_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Importance:
    """What each weight's squared error counts: importance of its input times importance of its output."""

    inputs: Float[np.ndarray, "slices depth"]
    """E[x^2] of each input, float64; one row, or one for each group of a convolution."""
    outputs: Float[np.ndarray, " rows"]
    """E[g^2] of each output, float64; ones where it is not known."""
    slice_of: Int[np.ndarray, " rows"]
    """The row of ``inputs`` that each row of the weight has."""

    @staticmethod
    def of(task: LayerTask) -> Importance:
        """Return the importance that a task's statistics give; all ones where there are none."""
        rows, depth = task.weight.shape
        known = task.statistics
        slices = 1 if known is None else known.groups
        slice_of = np.arange(rows) * slices // rows
        inputs = np.ones((1, depth)) if known is None else np.asarray(known.second, dtype=np.float64)
        outputs = np.ones(rows) if known is None or known.fisher is None else np.asarray(known.fisher, dtype=np.float64)
        return Importance(inputs, outputs, slice_of)

    def rows(self, start: int, stop: int) -> Float[np.ndarray, "rows depth"]:
        """Return the importance of each weight of some rows."""
        return self.inputs[self.slice_of[start:stop]] * self.outputs[start:stop, None]


@register
@dataclass(frozen=True)
class ImportanceRounding(Method):
    """Round to nearest under the scales whose error, weighted by E[x^2] of the inputs, is smallest.

    That is the error of the layer's outputs with the cross terms E[x_i x_j] left out. Every group tries all candidate
    clips, exactly; then scale and codes take turns: with the codes fixed the best scale is a quotient of two weighted sums,
    and each weight rounds to nearest again under it. A step is kept where the group's error falls. Where gradients at the
    outputs are known, outputs are weighted by E[g^2] too, which only matters where rows share a scale.

    Derived here from what is commonly done with an importance matrix: llama.cpp's quantizers search scales with weights
    E[x^2], and AutoRound's ``opt_rtn`` does the same in steps.

    Args:
        turns: how often scale and codes take turns, at most; 0 leaves the best candidate. Scales in 8-bit formats stay
            candidates, since few numbers lie between.

    Raises:
        QuantizationError: a setting out of range.
    """

    word: ClassVar[str] = "importance"
    title: ClassVar[str] = "importance-weighted RTN"
    summary: ClassVar[str] = "round to nearest, each group's scale chosen by the error as its inputs weigh it"

    turns: int = 10

    def __post_init__(self) -> None:
        if self.turns < 0:
            message = f"turns of importance is at least 0, not {self.turns}"
            raise QuantizationError(message)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments."""
        return frozenset({"moments"})

    def check(self, task: LayerTask) -> None:
        """Refuse a task without moments, or a grid whose levels are fitted to each group.

        Raises:
            QuantizationError: see above.
        """
        super().check(task)
        if task.grid.fitted:
            message = f"importance chooses scales for known levels, and {task.grid} fits its own to each group; pick another grid"
            raise QuantizationError(message)

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        grid = task.start_grid
        found = weighted_scales(task, grid, turns=self.turns)
        return Outcome(tensor_of(task, grid, indices_under(task, grid, found.scales), found.scales), found.trace)


@dataclass(frozen=True, eq=False)
class WeightedScales:
    """Scales chosen by weighted error."""

    scales: Scales
    trace: Trace
    """Weighted squared error of a row, mean over rows: of the best candidates, then after each turn."""


def weighted_scales(task: LayerTask, grid: Grid, *, turns: int = 10) -> WeightedScales:
    """Return, for each group, the scale with the smallest weighted squared error (see ``ImportanceRounding``)."""
    importance = Importance.of(task)
    matrix = as_matrix(task.weight)
    scale_format = check_scale_format(None, grid)
    ranges = group_ranges(matrix, task.granularity, extremes=grid.normalization == "signed")
    largest = float(ranges.reach(grid.normalization).max())
    shared = isinstance(task.granularity, PerTensor)
    clips = np.array(CANDIDATE_CLIPS_E8M0 if scale_format == "e8m0" else CANDIDATE_CLIPS)
    errors = []
    for start in range(0, len(clips), _AT_ONCE):
        pairs = [
            scale_and_offset(ranges, grid, float(clip), scale_format, largest)
            for clip in clips[start : start + _AT_ONCE]
        ]
        stacked = np.stack([rounded.scale for rounded, _ in pairs]), np.stack([offset for _, offset in pairs])
        errors.append(_errors(task, grid, importance, *stacked))
    whole = np.concatenate(errors)
    chosen = clips[np.argmin(whole, axis=0)]
    rounded, offset = scale_and_offset(ranges, grid, chosen, scale_format, largest)
    scales = Scales(rounded.scale, offset, rounded.tensor_scale, chosen)
    current = whole.min(axis=0)
    losses = [float(current.sum()) / len(task.weight)]
    for _ in range(turns if scale_format == "float32" else 0):
        scale = _turned(task, grid, importance, scales, shared=shared)
        after = _errors(task, grid, importance, scale[None], offset[None])[0]
        better = after < current * (1.0 - 1e-9)
        if not better.any():
            break
        current = np.where(better, after, current)
        scales = replace(scales, scale=np.where(better, scale, scales.scale).astype(np.float32))
        losses.append(float(current.sum()) / len(task.weight))
    if len(losses) > 1:  # clips are those that the scales came to
        reach = ranges.reach(grid.normalization)
        kept = np.divide(np.abs(scales.scale), reach, out=np.ones_like(reach), where=reach > 0.0)
        scales = replace(scales, clip=kept)
    return WeightedScales(scales, Trace(tuple(range(len(losses))), tuple(losses)))


def _errors(
    task: LayerTask, grid: Grid, importance: Importance, scales: np.ndarray, offsets: np.ndarray
) -> Float[np.ndarray, "candidates rows groups"]:
    """Return the weighted error of each scale group under each candidate."""
    from workbench.kernels.weighted_clips import weighted_errors

    size = task.granularity.group_size(task.weight.shape[1])
    errors = weighted_errors(task.weight, importance.inputs, importance.slice_of, size, scales, offsets, grid)
    errors *= importance.outputs[None, :, None]
    return errors.sum(axis=1, keepdims=True) if scales.shape[1] == 1 and len(task.weight) > 1 else errors


def _turned(
    task: LayerTask, grid: Grid, importance: Importance, scales: Scales, *, shared: bool
) -> Float[np.ndarray, "rows groups"]:
    """Return the best scale of each group for the codes that it has: sum m w b / sum m b^2 with b = level - offset."""
    rows, depth = task.weight.shape
    size = task.granularity.group_size(depth)
    group_of = np.arange(depth) // size
    starts = np.arange(0, depth, size)
    above, below = np.zeros((rows, len(starts))), np.zeros((rows, len(starts)))
    indices = indices_under(task, grid, scales)
    step = max(1, (1 << 20) // depth)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        offset = np.broadcast_to(scales.offset, (rows, scales.offset.shape[1]))[start:stop]
        basis = grid.levels[indices[start:stop]] - offset[:, group_of]
        weighted = importance.rows(start, stop) * basis
        above[start:stop] = np.add.reduceat(weighted * task.weight[start:stop], starts, axis=1)
        below[start:stop] = np.add.reduceat(weighted * basis, starts, axis=1)
    if shared:
        above, below = above.sum(axis=0, keepdims=True), below.sum(axis=0, keepdims=True)
    now = scales.scale.astype(np.float64)
    best = np.divide(above, below, out=now.copy(), where=below > 0.0)
    # A scale neither vanishes nor changes its sign: its codes would then mean something else.
    return np.where(best * now > 0.0, best, now).astype(np.float32)

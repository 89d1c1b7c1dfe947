"""What a sketch answers: the sums behind an error report, code counts, and whole grids of questions at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids.grid import Grid
from workbench.quantization.checks import check_clip
from workbench.quantization.report import ErrorReport
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import scale_and_offset
from workbench.quantization.sketch import Sketch

#: clip * scale and w_hat are rounded to float32: each moves a decoded weight by at most 2^-24 of itself.
_DECODE_ROUNDING = 2.0**-23

#: Running sums over some ten thousand float64 bins are off by less than this fraction of the energy that they add up.
_SUM_ROUNDING = 1e-13


@dataclass(frozen=True)
class Answer:
    """Sums over all weights for one grid and clip."""

    sketch: Sketch
    error: float
    """sum (w - w_hat)^2."""
    slack: float
    """How far ``error`` may be off."""
    decoded: float
    """sum w_hat^2."""
    max_abs: float
    """Largest abs(w - w_hat); nan where scales differ between groups."""
    max_steps: float
    """Largest abs(w - w_hat) over scale times widest gap."""

    @property
    def bound(self) -> float:
        """``slack`` relative to the smallest error it allows."""
        return relative_bound(self.error, self.slack)

    def report(self) -> ErrorReport:
        """Return the error report of these sums."""
        energy = self.sketch.energy
        return ErrorReport.from_sums(
            count=self.sketch.count,
            error=self.error,
            weight=energy,
            cross=(energy + self.decoded - self.error) / 2.0,
            decoded=self.decoded,
            max_abs=self.max_abs,
            max_steps=self.max_steps,
            approximate=not self.sketch.exact,
            bound=self.bound,
        )


def relative_bound(error: float, slack: float) -> float:
    """Return the largest relative deviation of an exact value that lies within ``slack`` of ``error``."""
    if slack == 0.0:
        return 0.0
    return slack / (error - slack) if error > slack else math.inf


def check_question(sketch: Sketch, grid: Grid, clip: float) -> None:
    """Refuse what a sketch cannot answer.

    Raises:
        QuantizationError: see ``sketch_error``.
        GridError: the grid's levels are fitted to groups of weights, which a sketch does not know.
    """
    if not isinstance(sketch, Sketch):
        message = (
            f"this question is put to a sketch, made with sketch(layer, granularity), not to a {type(sketch).__name__}"
        )
        raise QuantizationError(message)
    check_clip(clip)
    if grid.fitted:
        _ = grid.levels  # raises the sentence that says why there are none
    if sketch.exact:
        return
    if grid.normalization != sketch.normalization:
        message = (
            f"{grid} needs a sketch normalised by {grid.normalization}, this one is normalised by "
            f"{sketch.normalization}; make it with sketch(layer, granularity, {grid.normalization!r})"
        )
        raise QuantizationError(message)
    scale_format = check_scale_format(None, grid)
    if scale_format != sketch.scale_format:
        message = (
            f"{grid} stores its scales as {scale_format}, this sketch was made under {sketch.scale_format} scales; "
            f"make it with sketch(layer, granularity, grid=grid)"
        )
        raise QuantizationError(message)
    if clip != 1.0 and not sketch.clips_freely:
        message = (
            f"this sketch holds the scales and zero points of {grid} as they round at clip 1, and cannot tell those "
            f"at clip {clip}; use exact_error"
        )
        raise QuantizationError(message)


def ask(sketch: Sketch, grid: Grid, clip: float = 1.0) -> Answer:
    """Return the error sums of a grid.

    Raises:
        QuantizationError: see ``sketch_error``.
    """
    from workbench.kernels import query

    check_question(sketch, grid, clip)
    gap = float(np.max(np.diff(grid.levels)))
    if sketch.exact:
        scale, offset = tensor_scale(sketch, grid, clip)
        weights, n = ascending(sketch)
        error, _, decoded, largest = query.query_distinct(weights, n, scale, offset, grid.thresholds, grid.levels)
        steps = largest / (abs(scale) * gap) if scale != 0.0 else math.nan
        return Answer(sketch, error, 0.0, decoded, largest, steps)
    thresholds, levels = on_axis(sketch, grid, clip)
    low, high = sketch.sharp_borders if clip == 1.0 else (sketch.value_min, sketch.value_max)
    found = query.query(low, high, sketch.moments, sketch.running, thresholds, levels, 1.0)
    error, slack, decoded = finish(sketch, found)
    if _zero_points_differ(sketch, grid):
        slack = math.inf
    return Answer(sketch, float(error), float(slack), float(decoded), math.nan, float(found[4]) / (clip * gap))


def code_counts(sketch: Sketch, grid: Grid, clip: float = 1.0) -> Float[np.ndarray, " levels"]:
    """Return how many weights each level gets; exact for exact sketches, else right to the bins that thresholds cut.

    Raises:
        QuantizationError: see ``sketch_error``.
    """
    from workbench.kernels import query

    check_question(sketch, grid, clip)
    counts = np.zeros(len(grid.levels))
    if sketch.exact:
        scale, offset = tensor_scale(sketch, grid, clip)
        if scale == 0.0:
            counts[np.argmin(np.abs(grid.levels))] = sketch.count
            return counts
        weights, n = ascending(sketch)
        query.query_distinct(weights, n, scale, offset, grid.thresholds, grid.levels, occupancy=counts)
        return counts
    thresholds, levels = on_axis(sketch, grid, clip)
    query.query(
        sketch.value_min, sketch.value_max, sketch.moments, sketch.running, thresholds, levels, 1.0, counts=counts
    )
    return counts


def ask_many(
    sketch: Sketch, grids: Sequence[Grid], clips: Float[np.ndarray, " clips"]
) -> tuple[Float[np.ndarray, "grids clips"], Float[np.ndarray, "grids clips"]]:
    """Return the error sums, and how far they may be off, of every grid at every clip.

    Args:
        sketch: of the grids' normalization.
        grids: of equally many levels, zero-centred (``absmax`` or ``signed``).
        clips: fractions of absmax, above 0 and at most 1.

    Raises:
        QuantizationError: see ``sketch_error``.
    """
    from workbench.kernels import query

    for grid in grids:
        check_question(sketch, grid, float(np.min(clips)))
    check_question(sketch, grids[0], float(np.max(clips)))
    thresholds = np.stack([grid.thresholds for grid in grids])
    levels = np.stack([grid.levels for grid in grids])
    clips = np.ascontiguousarray(clips, dtype=np.float64)
    if sketch.exact:
        pairs = [tensor_scale(sketch, grids[0], float(clip)) for clip in clips]
        scales, offsets = (np.array(part, dtype=np.float64) for part in zip(*pairs, strict=True))
        weights, n = ascending(sketch)
        found = query.query_distinct_many(weights, n, scales, offsets, thresholds, levels)
        return found[..., 0], np.zeros(found.shape[:2])
    if grids[0].normalization == "range":
        answers = [[ask(sketch, grid, float(clip)) for clip in clips] for grid in grids]
        return (
            np.array([[answer.error for answer in row] for row in answers]),
            np.array([[answer.slack for answer in row] for row in answers]),
        )
    found = query.query_many(
        sketch.value_min, sketch.value_max, sketch.moments, sketch.running, thresholds, levels, clips
    )
    error, slack, _ = finish(sketch, np.moveaxis(found, -1, 0))
    return error, slack


def finish(sketch: Sketch, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return error, slack and decoded energy from a kernel's answer (its first axis), float32 rounding allowed for."""
    error, slack, power, shifted = found[0], found[1], found[2], found[3]
    if sketch.offset_moment is not None:
        power = power - 2.0 * shifted + sketch.offset_energy
    error, power = np.maximum(error, 0.0), np.maximum(power, 0.0)
    rounding = 2.0 * np.sqrt(error * power) * _DECODE_ROUNDING + power * _DECODE_ROUNDING**2
    magnitude = sketch.energy if sketch.offset_moment is None else sketch.energy + sketch.offset_energy
    return error, slack + rounding + _SUM_ROUNDING * magnitude, power


def on_axis(sketch: Sketch, grid: Grid, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid's thresholds and levels under a clip on the sketch's unclipped axis."""
    if clip == 1.0:
        return grid.thresholds, grid.levels
    # A range is shrunk around its middle (``scale_and_offset``), a magnitude around zero.
    centre = 0.5 * (1.0 - clip) if sketch.normalization == "range" else 0.0
    return grid.thresholds * clip + centre, grid.levels * clip + centre


def tensor_scale(sketch: Sketch, grid: Grid, clip: float) -> tuple[float, float]:
    """Return the one scale and offset that a grid and clip give the whole layer of an exact sketch."""
    ranges = sketch.ranges
    largest = float(ranges.reach(grid.normalization)[0, 0])
    rounded, offset = scale_and_offset(ranges, grid, clip, check_scale_format(None, grid), largest)
    return float(rounded.scale[0, 0]), float(offset[0, 0])


def ascending(sketch: Sketch) -> tuple[np.ndarray, np.ndarray]:
    """Return an exact sketch's weights and counts in ascending order of the weight."""
    weights = sketch.weights
    assert weights is not None
    if len(weights) > 1 and weights[0] > weights[-1]:
        return np.ascontiguousarray(weights[::-1]), np.ascontiguousarray(sketch.n[::-1])
    return weights, sketch.n


def _zero_points_differ(sketch: Sketch, grid: Grid) -> bool:
    """Say whether the grid rounds zero points in a way the sketch does not hold."""
    return grid.integer_zero_point and sketch.zero_steps != len(grid.levels) - 1

"""Scale rules: how large each group's scale is, and where a ``range`` grid puts its zero.

``absmax`` keeps every weight inside the grid; ``percentile:99.9`` lets the largest ones saturate; ``mse`` takes, group
by group, the clip with the smallest squared error. A rule says how far a group reaches; ``scale_and_offset`` turns that
reach into the grid's scale and offset, and the scale's format rounds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids.grid import Grid
from workbench.quantization.checks import check_clip
from workbench.quantization.granularity import Granularity
from workbench.quantization.ranges import GroupRanges, group_percentiles, group_ranges
from workbench.quantization.scale_formats import RoundedScales, check_scale_format, round_scale, unit_count
from workbench.quantization.source import Matrix

#: Clips that ``mse`` tries, largest first: of two equal errors the one that clips less wins.
CANDIDATE_CLIPS: tuple[float, ...] = tuple(float(clip) for clip in np.round(np.linspace(1.0, 0.05, 96), 2))

#: With e8m0 scales only powers of two differ: one above OCP's floor, then downwards.
CANDIDATE_CLIPS_E8M0: tuple[float, ...] = tuple(2.0**k for k in range(1, -6, -1))


@dataclass(frozen=True)
class AbsMax:
    """The scale reaches the group's largest magnitude (times the clip)."""

    def __str__(self) -> str:
        return "absmax"


@dataclass(frozen=True)
class Percentile:
    """The scale reaches the given percentile of abs(w) in the group; weights beyond it saturate.

    The percentile interpolates linearly between the two nearest order statistics (numpy's default). A group whose
    percentile is 0 while it holds other weights keeps its absmax: it would vanish otherwise.
    """

    percent: float

    def __post_init__(self) -> None:
        if not 0.0 < self.percent <= 100.0:
            message = f"a percentile lies above 0 and at most at 100, not at {self.percent}"
            raise QuantizationError(message)

    def __str__(self) -> str:
        return f"percentile:{self.percent:g}"


@dataclass(frozen=True)
class BestClip:
    """Each group takes the clip, of the candidates, whose squared error is smallest (exactly, over all its weights)."""

    candidates: tuple[float, ...] | None = None
    """Fractions of the group's absmax; None for ``CANDIDATE_CLIPS`` (powers of two when the scale is e8m0)."""

    def __post_init__(self) -> None:
        if self.candidates is not None and not (self.candidates and all(c > 0.0 for c in self.candidates)):
            message = f"candidate clips are positive fractions of absmax, not {self.candidates}"
            raise QuantizationError(message)

    def __str__(self) -> str:
        return "mse"


@dataclass(frozen=True, eq=False)
class GivenScale:
    """Scales that are known already, from a checkpoint, another library, or an earlier quantization."""

    scale: Float[np.ndarray, "rows groups"]
    """Full scales (level 1), the granularity's ``scale_shape``."""
    offset: Float[np.ndarray, "rows groups"] | None = None
    """Offsets of a ``range`` grid on the grid's axis, same shape; None for zeros."""

    def __str__(self) -> str:
        return "given"


ScaleRule = AbsMax | Percentile | BestClip | GivenScale


@dataclass(frozen=True, eq=False)
class Scales:
    """What a rule found for a whole tensor."""

    scale: Float[np.ndarray, "rows groups"]
    """float32, the full scale of each group, after its format rounded it."""
    offset: Float[np.ndarray, "rows groups"]
    """float64, where zero lies on the grid's axis; zeros unless the grid is a ``range`` grid."""
    tensor_scale: float | None = None
    """Second-level scale of e4m3 formats."""
    clip: Float[np.ndarray, "rows groups"] = field(default_factory=lambda: np.ones((1, 1)))
    """The clip of each group, float64 (one value where all share it)."""


def parse_scale_rule(rule: str | ScaleRule) -> ScaleRule:
    """Read ``absmax``, ``percentile:99.9`` or ``mse`` (a rule itself passes through).

    Raises:
        QuantizationError: the text is none of the three, or the percentile is out of range.

    >>> parse_scale_rule("percentile:99.9")
    Percentile(percent=99.9)
    """
    if isinstance(rule, AbsMax | Percentile | BestClip | GivenScale):
        return rule
    word, _, value = str(rule).strip().lower().partition(":")
    if word == "absmax" and not value:
        return AbsMax()
    if word == "mse" and not value:
        return BestClip()
    if word == "percentile":
        try:
            percent = float(value)
        except ValueError:
            pass  # falls through to the one sentence below
        else:
            return Percentile(percent)  # out of range it has a sentence of its own
    message = f"scale rule {rule!r} is not known; write absmax, percentile:99.9 (any percentile), or mse"
    raise QuantizationError(message)


def check_no_scale_rule(grid: Grid, scale: str | ScaleRule, clip: float) -> None:
    """Refuse a scale rule or clip for a grid that fits its scales to the weights.

    Raises:
        QuantizationError: a rule or clip that is not the default.
    """
    if not isinstance(parse_scale_rule(scale), AbsMax) or clip != 1.0:
        message = f"{grid} fits its scales to the weights and takes neither a scale rule nor a clip; leave both out"
        raise QuantizationError(message)


def scale_and_offset(
    ranges: GroupRanges, grid: Grid, clip: float | np.ndarray, scale_format: str, largest: float
) -> tuple[RoundedScales, Float[np.ndarray, "rows groups"]]:
    """Turn each group's range into the grid's scale and offset.

    * ``absmax``: scale = clip * max|w|, offset 0.
    * ``signed``: the same magnitude; its sign maps the weight of largest magnitude onto the level -1.
    * ``range``: scale = clip * (max(w, 0) - min(w, 0)). The clip shrinks the range around its middle: with
      o = -min / (max - min) on the axis of the whole range, the offset is (o - (1 - clip) / 2) / clip, rounded to a
      whole code (half to even) where the grid has an integer zero point.

    Args:
        ranges: what the groups hold.
        grid: gives the normalization.
        clip: fraction of the range to keep, one for all or one per group.
        scale_format: a key of ``SCALE_BITS``.
        largest: the largest unclipped scale of the whole tensor.
    """
    units = unit_count(grid)
    if grid.normalization != "range":
        full = clip * ranges.absmax
        if grid.normalization == "signed":
            full = np.where(ranges.extreme > 0.0, -full, full)
        return round_scale(full, scale_format, units, largest), np.zeros_like(ranges.low)
    width = ranges.high - ranges.low
    rounded = round_scale(clip * width, scale_format, units, largest)
    # On the axis of the whole range the shrunk one starts at (1 - clip) / 2, wherever the group's zero lies.
    origin = np.divide(-ranges.low, width, out=np.zeros_like(width), where=width > 0.0)
    offset = np.where(width > 0.0, (origin - (1.0 - clip) / 2.0) / clip, 0.0)
    if grid.integer_zero_point:
        last = len(grid.levels) - 1
        offset = np.rint(offset * last) / last
    return rounded, offset


def find_scales(
    matrix: Matrix,
    grid: Grid,
    granularity: Granularity,
    rule: ScaleRule,
    *,
    clip: float = 1.0,
    scale_format: str | None = None,
) -> Scales:
    """Apply a scale rule to every group of a weight.

    Args:
        matrix: the weight (``as_matrix``).
        grid: gives the normalization, and the levels that ``mse`` tries.
        granularity: what shares a scale.
        rule: ``AbsMax()``, ``Percentile(99.9)``, ``BestClip()``, or ``GivenScale(...)``.
        clip: fraction of the rule's scale to keep, in (0, 1].
        scale_format: a key of ``SCALE_BITS``; None for the grid's own, else float32.

    Raises:
        QuantizationError: NaN or infinite weights, a clip out of range, or a scale that its format cannot hold.

    >>> from workbench.grids import UniformGrid
    >>> from workbench.quantization import PerAxis, as_matrix
    >>> find_scales(as_matrix(np.array([[0.5, -2.0]])), UniformGrid(bits=4), PerAxis(0), AbsMax(), clip=0.5).scale
    array([[1.]], dtype=float32)
    """
    scale_format = check_scale_format(scale_format, grid)
    check_clip(clip)
    ranges = group_ranges(matrix, granularity, extremes=grid.normalization == "signed")
    if isinstance(rule, GivenScale):
        return _given(rule, granularity.scale_shape(*matrix.weights.shape), clip)
    if isinstance(rule, Percentile):
        ranges = ranges.limited(group_percentiles(matrix, granularity, rule.percent))
    largest = float(ranges.reach(grid.normalization).max())
    if isinstance(rule, BestClip):
        from workbench.quantization.exact import best_group_clips  # compiled, and it stands on this module

        clips = best_group_clips(
            matrix, grid, granularity, rule.candidates, ranges=ranges, scale_format=scale_format, clip=clip
        )
    else:
        clips = np.full((1, 1), float(clip))
    rounded, offset = scale_and_offset(ranges, grid, clips, scale_format, largest)
    return Scales(rounded.scale, offset, rounded.tensor_scale, clips)


def _given(rule: GivenScale, shape: tuple[int, int], clip: float) -> Scales:
    """Check scales that the caller brought."""
    if clip != 1.0:
        message = f"given scales are used as they are; leave clip at 1 instead of {clip}"
        raise QuantizationError(message)
    scale = np.asarray(rule.scale).astype(np.float32)
    offset = np.zeros(shape) if rule.offset is None else np.asarray(rule.offset, dtype=np.float64)
    for name, array in (("scale", scale), ("offset", offset)):
        if array.shape != shape:
            message = f"the given {name} has shape {array.shape}; this weight and granularity need {shape}"
            raise QuantizationError(message)
        if not np.isfinite(array).all():
            message = f"the given {name} holds NaN or infinite values; every group needs a finite {name}"
            raise QuantizationError(message)
    return Scales(scale, offset)

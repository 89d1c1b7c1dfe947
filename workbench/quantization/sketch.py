"""Sketch a layer once, ask any grid: the moment histogram of a layer's normalised weights.

One streaming pass over the stored weights keeps, for each bin of ``u = w / s + o`` (``s`` and ``o``: the scale and
offset of the weight's group), the count and the sums of s^2, s^2 u and s^2 u^2. From these the reconstruction error of
any grid and clip costs one binary search for each threshold, whatever the layer's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids.grid import Grid
from workbench.quantization.checks import as_grid
from workbench.quantization.granularity import Granularity, parse_granularity
from workbench.quantization.ranges import GroupRanges
from workbench.quantization.report import ErrorReport
from workbench.quantization.scale_formats import check_scale_format

Progress = Callable[[float], Any]

NORMALIZATIONS = ("absmax", "signed", "range")


@dataclass(frozen=True, eq=False, repr=False)
class Sketch:
    """The moment histogram of a layer: bins of the normalised weight ``u``, ascending, none empty.

    The error of a grid is the sum, over the bins that fall to a level L, of ``m2 - 2 L m1 + L^2 m0``.
    """

    name: str
    """The layer's dotted name."""
    granularity: str
    """``tensor``, ``channel`` or ``group:128``: what shares the scale that ``u`` is normalised by."""
    normalization: str
    """``absmax``, ``signed`` or ``range``; how the scale follows from a group's weights (see ``Grid``)."""
    count: int
    """How many weights."""
    rows: int
    columns: int
    value_min: Float[np.ndarray, " bins"]
    """float64: no u in the bin is smaller."""
    value_max: Float[np.ndarray, " bins"]
    """float64: no u in the bin is larger."""
    n: Float[np.ndarray, " bins"]
    """float64: weights in the bin."""
    m0: Float[np.ndarray, " bins"]
    """float64: sum of s^2."""
    m1: Float[np.ndarray, " bins"]
    """float64: sum of s^2 u."""
    m2: Float[np.ndarray, " bins"]
    """float64: sum of s^2 u^2."""
    absmax: float
    """Largest magnitude of a weight."""
    energy: float
    """Sum of w^2."""
    exact: bool
    """Whether every bin holds one single weight value under one scale: answers are exact then."""
    low: float = 0.0
    """min(w, 0) over the layer."""
    high: float = 0.0
    """max(w, 0) over the layer."""
    extreme: float = 0.0
    """The weight of largest magnitude (the first in order where +x and -x tie)."""
    scale_format: str = "float32"
    """The format that rounded the scales the weights are normalised by."""
    zero_steps: int = 0
    """Offsets are whole multiples of 1 / zero_steps (``range`` grids with integer zero points); 0 for free offsets."""
    weights: Float[np.ndarray, " bins"] | None = None
    """float64: the weight value of each bin when the sketch is exact."""
    offset_moment: Float[np.ndarray, " bins"] | None = None
    """float64: sum of s^2 o of each bin, for ``range`` sketches."""
    offset_energy: float = 0.0
    """Sum of s^2 o^2."""
    bfloat16: bool = False
    """Whether weights and scales all are bfloat16 numbers (see ``sharp_borders``)."""
    clips_freely: bool = True
    """Whether other clips than 1 follow from this sketch (not where a format or zero point rounded under clip 1)."""

    @property
    def total(self) -> float:
        """How many weights the bins hold, as a float (their sum of ``n``)."""
        return float(self.count)

    @property
    def bins(self) -> int:
        """How many bins are filled."""
        return len(self.n)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.value_min, self.value_max, self.n, self.m0, self.m1, self.m2, self.weights, self.offset_moment)
        return sum(part.nbytes for part in arrays if part is not None)

    @cached_property
    def moments(self) -> Float[np.ndarray, "bins 5"]:
        """n, m0, m1, m2 and the offset moment side by side, as the kernels read them."""
        z = np.zeros_like(self.n) if self.offset_moment is None else self.offset_moment
        return np.ascontiguousarray(np.stack([self.n, self.m0, self.m1, self.m2, z], axis=1))

    @cached_property
    def sharp_borders(self) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
        """Least and largest u of each bin at clip 1, where piles on powers of two are known to be exactly there.

        A quotient of two bfloat16 numbers is a power of two, or at least 1/256 away from it: the significands are whole
        numbers below 256. So a logarithmic bin that starts at 2^-k holds that one value, which is where a power grid
        of exponent 1/2 has borders, and many weights sit.
        """
        if not self.bfloat16:
            return self.value_min, self.value_max
        low, high = self.value_min.copy(), self.value_max.copy()
        start = 1.0 - 2.0**-23  # a bin's border is moved out by that much, for rounding
        for inner, sign in ((self.value_min, 1.0), (-self.value_max, -1.0)):
            mantissa, exponent = np.frexp(inner)
            pile = mantissa == start
            low[pile] = high[pile] = sign * np.ldexp(1.0, exponent[pile])
        return low, high

    @cached_property
    def running(self) -> Float[np.ndarray, "borders 9"]:
        """Sums below and above each bin border."""
        from workbench.kernels.query import running_sums

        return running_sums(self.moments)

    @cached_property
    def ranges(self) -> GroupRanges:
        """What the whole layer reaches, as one group."""
        return GroupRanges(*(np.array([[value]]) for value in (self.low, self.high, self.extreme)))

    def rebin(self, max_bins: int) -> Sketch:
        """Return a coarser sketch with at most ``max_bins`` bins, for sending to a browser or for drawing.

        Neighbouring bins are joined so that each holds about the same share of (mass * width^2)^(1/3), the point
        density that Panter and Dite (1951) found best for the squared error, mixed with equal numbers of bins.

        Raises:
            QuantizationError: ``max_bins`` is below 2.
        """
        if max_bins < 2:
            message = f"a sketch keeps at least 2 bins, not {max_bins}"
            raise QuantizationError(message)
        if self.bins <= max_bins:
            return self
        width = np.maximum(np.diff(np.append(self.value_min, self.value_max[-1])), 0.0)
        width[~np.isfinite(width)] = 0.0
        share = np.cbrt(self.n * width * width)
        share = share / share.sum() if share.sum() > 0.0 else share
        place = np.cumsum(0.8 * share + 0.2 / self.bins)
        cell = np.minimum((place / place[-1] * max_bins).astype(np.int64), max_bins - 1)
        starts = np.flatnonzero(np.append(True, np.diff(cell) > 0))
        add = np.add.reduceat
        joined = None if self.offset_moment is None else add(self.offset_moment, starts)
        return replace(
            self,
            value_min=np.minimum.reduceat(self.value_min, starts),
            value_max=np.maximum.reduceat(self.value_max, starts),
            n=add(self.n, starts),
            m0=add(self.m0, starts),
            m1=add(self.m1, starts),
            m2=add(self.m2, starts),
            exact=False,
            bfloat16=False,
            weights=None,
            offset_moment=joined,
        )

    def __repr__(self) -> str:
        kind = "exact, " if self.exact else ""
        return (
            f"Sketch({self.name!r}, {self.rows}x{self.columns}, {self.granularity}, {self.normalization}, "
            f"{kind}{self.bins:,} bins, {self.nbytes / 1e6:.2g} MB)"
        )


def sketch(  # noqa: PLR0917 - the words of the call, in the order they are spoken
    layer: Any,
    granularity: str | Granularity = "channel",
    normalization: str = "absmax",
    progress: Progress | None = None,
    cache: bool = True,
    grid: str | Grid | None = None,
) -> Sketch:
    """Make the moment histogram of a layer in one streaming pass (or take it from the disk cache).

    At ``tensor`` granularity a 16-bit layer has at most 65,536 different weights: the sketch then keeps each of them,
    and every answer is exact. Otherwise bins are logarithmic (``kernels.binning``), linear for ``range``.

    Args:
        layer: a ``Layer``, an array or a tensor (``as_matrix``).
        granularity: what shares a scale.
        normalization: ``absmax``, ``signed`` or ``range``: the ``normalization`` of the grids to ask about.
        progress: called with the finished fraction, 0 to 1; may raise ``Cancelled`` to stop.
        cache: whether a ``Layer``'s sketch is kept on disk under its content key.
        grid: sketch under this grid's own scales: its normalization, its scale format (e8m0 and e4m3 block scales) and
            its integer zero points. ``sketch_error`` needs that for such grids, where a plain sketch cannot know how
            each group's scale or zero point was rounded.

    Raises:
        QuantizationError: an unknown granularity or normalization, an empty weight, NaN or infinite weights.
        Cancelled: raised by ``progress``.
    """
    from workbench.quantization.cache import cached_sketch
    from workbench.quantization.sketching import Scaling, make_sketch

    granularity = parse_granularity(granularity)
    if grid is not None:
        grid = as_grid(grid)
        normalization = grid.normalization
    if normalization not in NORMALIZATIONS:
        message = f"normalization {normalization!r} is not known; write one of {', '.join(NORMALIZATIONS)}"
        raise QuantizationError(message)
    scaling = Scaling.of(normalization, grid)
    key = getattr(layer, "content_key", "") if cache else ""
    if key:
        words = (key, str(granularity), scaling.words)
        return cached_sketch(words, layer.name, lambda: make_sketch(layer, granularity, scaling, progress))
    return make_sketch(layer, granularity, scaling, progress)


def sketch_error(sketch: Sketch, grid: str | Grid, clip: float = 1.0) -> ErrorReport:
    """Return the error of any grid from a sketch, with a bound on how far it may be from the exact one.

    Args:
        sketch: of the grid's normalization.
        grid: any scalar grid, or its text form.
        clip: fraction of each group's absmax (or range) that the scale keeps, above 0 and at most 1.

    Returns:
        A report with ``approximate`` set and its ``bound``: the exact mse lies within ``bound`` (relative to itself) of
        ``mse``. ``max_abs`` is nan, a sketch does not know it; ``max_steps`` is right to a bin's width. The bound is
        infinite for grids with integer zero points on a sketch with free offsets: how each group's zero point is
        rounded is not in the sketch (``sketch(..., grid=grid)`` knows). An exact sketch answers exactly, for every grid.

    Raises:
        QuantizationError: the sketch has another normalization than the grid, or was made under other block scales, or
            the clip is out of range.
    """
    from workbench.quantization.asking import ask

    return ask(sketch, as_grid(grid), clip).report()


def sketch_for(
    layer: Any, grid: Grid, granularity: str | Granularity = "channel", progress: Progress | None = None
) -> Sketch:
    """Make the sketch that answers for a grid at any clip it can: plain where scales are float32, else the grid's own.

    Arguments and errors as in ``sketch``.
    """
    plain = check_scale_format(None, grid) == "float32" and not grid.integer_zero_point
    return sketch(layer, granularity, grid.normalization, progress, grid=None if plain else grid)

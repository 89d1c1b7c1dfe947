"""What other grids of the same bits do on a layer: the uniform grid, and the best of all, each at the clip that suits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import GridError, QuantizationError
from workbench.grids import (
    AdditivePowerGrid,
    CodebookGrid,
    FloatGrid,
    Grid,
    LogGrid,
    PowerGrid,
    UniformGrid,
    parse_grid,
)
from workbench.quantization.bits import bits_per_weight
from workbench.quantization.exact import exact_error
from workbench.quantization.granularity import Granularity, parse_granularity
from workbench.quantization.lloyd import kmeans
from workbench.quantization.report import ErrorReport
from workbench.quantization.search import best_clip, search_exponent
from workbench.quantization.sketch import Sketch, sketch, sketch_error, sketch_for
from workbench.quantization.source import as_matrix

if TYPE_CHECKING:
    import pandas as pd

#: Bits per weight by which a grid may exceed another and still count as equally large: a hundredth of a bit is what
#: one integer zero point for each row of 400 weights costs.
EQUAL_BITS = 0.01

#: Bins that a codebook is fitted on.
FIT_BINS = 8192

#: Formats that are named by their bits and, for block formats, by how many weights share a scale.
_FLOATS = {4: ("e2m1",), 6: ("e2m3", "e3m2"), 8: ("e4m3", "e5m2")}
_BLOCKS = {(4, 32): "mxfp4", (6, 32): "mxfp6-e2m3", (8, 32): "mxfp8-e4m3", (4, 16): "nvfp4"}


@dataclass(frozen=True)
class Contender:
    """One grid on one layer, at the clip at which it errs least."""

    grid: Grid
    clip: float
    """Fraction of the absmax, shared by all groups; 1 where the grid's scale format allows no other."""
    report: ErrorReport
    bits_per_weight: float
    """Codes, scales, zero points and codebook."""


@dataclass(frozen=True)
class Contest:
    """All grids of the same bits on one layer, the best first."""

    layer: str
    granularity: str
    bits: int
    contenders: tuple[Contender, ...]

    @property
    def uniform(self) -> Contender:
        """The symmetric uniform grid (narrow range)."""
        return next(c for c in self.contenders if c.grid == UniformGrid(bits=self.bits))

    def best(self, budget: float | None = None) -> Contender:
        """Return the grid with the smallest error among those that take at most ``budget`` bits per weight.

        Args:
            budget: bits per weight, with ``EQUAL_BITS`` of tolerance; None takes the uniform grid's own.
        """
        most = (self.uniform.bits_per_weight if budget is None else budget) + EQUAL_BITS
        allowed = [c for c in self.contenders if c.bits_per_weight <= most]
        return allowed[0] if allowed else min(self.contenders, key=lambda c: c.bits_per_weight)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each grid."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "grid": str(c.grid) if len(str(c.grid)) < 60 else c.grid.label,
                    "clip": c.clip,
                    "mse": c.report.mse,
                    "sqnr_db": c.report.sqnr_db,
                    "bits_per_weight": c.bits_per_weight,
                }
                for c in self.contenders
            ]
        )


def contest(
    layer: Any,
    bits: int,
    granularity: str | Granularity = "channel",
    progress: Callable[[float], Any] | None = None,
) -> Contest:
    """Measure, from sketches where these can tell, every kind of grid with ``bits`` bits on a layer, each at its best shared clip.

    The kinds are: uniform (narrow, full, asymmetric), power at its best exponent (both rounding kinds), powers of two,
    sums of powers of two, the float formats of these bits (block formats where the granularity is their block), NF4,
    and a codebook fitted to the layer by Lloyd-Max.

    Args:
        layer: a ``Layer``, an array or a tensor.
        bits: of one code, 2 to 8.
        granularity: what shares a scale, the same for all.
        progress: called with the finished fraction, 0 to 1; may raise ``Cancelled`` to stop.

    Raises:
        QuantizationError: bits out of range, or weights that cannot be sketched.
    """
    if not 2 <= bits <= 8:
        message = f"grids are compared at 2 to 8 bits, not {bits}"
        raise QuantizationError(message)
    granularity = parse_granularity(granularity)
    shape = as_matrix(layer).shape
    sketches: dict[Any, Sketch] = {}

    def sketched(grid: Grid) -> Sketch:
        key = grid if grid.scale_format else grid.normalization
        if key not in sketches:
            sketches[key] = sketch_for(layer, grid, granularity)
        return sketches[key]

    grids = list(_fixed(bits, granularity))
    found = []
    makers: list[Callable[[], Grid]] = [*(lambda g=g: g for g in grids), *_fitted(bits, sketched)]
    for done, make in enumerate(makers):
        if progress is not None:
            progress(done / len(makers))
        try:
            grid = make()
        except GridError:  # not every kind exists at every number of bits
            continue
        if grid.integer_zero_point:
            clip, report = _with_zero_points(layer, grid, granularity)
        else:
            pooled = sketched(grid)
            clip = best_clip(pooled, grid).clip if pooled.clips_freely else 1.0
            report = sketch_error(pooled, grid, clip)
        found.append(Contender(grid, clip, report, bits_per_weight(grid, granularity, shape)))
    if progress is not None:
        progress(1.0)
    ranked = sorted(found, key=lambda c: (c.report.mse, c.bits_per_weight))
    return Contest(as_matrix(layer).name, str(granularity), bits, tuple(ranked))


def measured(layer: Any, contender: Contender, granularity: str | Granularity, scale: str = "absmax") -> Contender:
    """Return the contender with its error measured on every weight instead of taken from the sketch.

    Args:
        layer: what the contest was held on.
        contender: one of its grids.
        granularity: the contest's.
        scale: ``absmax`` keeps the contender's clip; ``mse`` gives every group the clip that suits it.
    """
    clip = contender.clip if scale == "absmax" else 1.0
    report = exact_error(layer, contender.grid, granularity=granularity, scale=scale, clip=clip, per_channel=True)
    return replace(contender, report=report, clip=clip)


def _with_zero_points(layer: Any, grid: Grid, granularity: Granularity) -> tuple[float, ErrorReport]:
    """Return clip and error of a grid with integer zero points, measured on every weight.

    How each group's zero point rounds is not in a sketch, so the sketch with free offsets only proposes the clip.
    """
    proposed = best_clip(sketch(layer, granularity, grid.normalization), grid).clip
    tried = [(clip, exact_error(layer, grid, granularity, clip=clip)) for clip in {1.0, proposed}]
    return min(tried, key=lambda entry: entry[1].mse)


def _fixed(bits: int, granularity: Granularity) -> Iterator[Grid]:
    """Yield the grids that a number of bits and a granularity name."""
    for span in ("narrow", "full", "asymmetric"):
        yield UniformGrid(bits=bits, range=span)
    for kind in (LogGrid, AdditivePowerGrid):
        try:
            yield kind(bits=bits)
        except GridError:
            continue
    for name in _FLOATS.get(bits, ()):
        grid = parse_grid(name)
        if isinstance(grid, FloatGrid) and grid.block is None:
            yield grid
    block = _BLOCKS.get((bits, getattr(granularity, "size", 0)))
    if block is not None:
        yield parse_grid(block)
    if bits == 4:
        yield CodebookGrid("nf4")


def _fitted(bits: int, sketched: Callable[[Grid], Sketch]) -> Sequence[Callable[[], Grid]]:
    """Return makers of the grids that are fitted to the layer."""

    def power(rounding: Any) -> Callable[[], Grid]:
        def make() -> Grid:
            pooled = sketched(PowerGrid(bits=bits, rounding=rounding))
            found = search_exponent(pooled, bits, clip="joint", rounding=rounding)
            return PowerGrid(bits=bits, exponent=found.exponent, rounding=rounding)

        return make

    def codebook() -> Grid:
        # Fitted on a coarser sketch: ten times quicker, and its error is taken from the fine one all the same.
        return kmeans(sketched(PowerGrid(bits=bits)).rebin(FIT_BINS), bits)

    return [power("power"), power("nearest"), codebook]

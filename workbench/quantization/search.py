"""The best exponent and the best clip, for one layer or for a whole model.

The error is piecewise smooth in the exponent: codes jump as it moves, and a simplex started at 0.5 can end in a local
minimum. So a coarse grid is always asked first, and refining starts from its minimum and never ends above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.grids.grid import Grid
from workbench.quantization.asking import ask, ask_many
from workbench.quantization.checks import as_grid
from workbench.quantization.granularity import Granularity
from workbench.quantization.minimum import golden_section, nelder_mead
from workbench.quantization.sketch import Progress, Sketch, sketch

if TYPE_CHECKING:
    from workbench.grids.power import Rounding

Objective = Literal["norm", "mse", "relative"]

#: The coarse grid: 0.2, 0.22, ... 1.2; it holds 1, the uniform grid.
EXPONENTS = np.round(np.arange(0.2, 1.2001, 0.02), 2)

#: Coarse clips of a joint search and of ``best_clip``: equal ratios down to 1 % of absmax, and 1 itself.
CLIPS = np.geomspace(0.01, 1.0, 97)

_SMALLEST_CLIP = 1e-3


@dataclass(frozen=True, repr=False, eq=False)
class ExponentSearch:
    """What a search for the exponent found."""

    exponent: float
    clip: float
    """The clip: as given, or found with the exponent."""
    mse: float
    """Mean squared error there, over all weights searched."""
    sqnr_db: float
    """Signal to quantization noise there, in dB."""
    bits: int
    rounding: str
    granularity: str
    objective: str
    value: float
    """The objective at the minimum."""
    exponents: Float[np.ndarray, " exponents"]
    """The coarse grid's exponents."""
    clips: Float[np.ndarray, " clips"]
    """The coarse grid's clips (one when the clip was given)."""
    coarse: Float[np.ndarray, "exponents clips"] = field(repr=False)
    """The objective on the coarse grid."""
    refinement: tuple[tuple[float, float, float], ...] = field(repr=False)
    """Exponent, clip and objective of each question asked after the coarse grid, in order."""
    layers: tuple[str, ...] = ()
    """Names of the layers that share the exponent."""
    bound: float = 0.0
    """Largest relative error that ``mse`` can have; 0 when it is exact."""

    @property
    def grid(self) -> PowerGrid:
        """The power grid at the exponent found."""
        return PowerGrid(bits=self.bits, exponent=self.exponent, rounding=self.rounding)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        over = f" over {len(self.layers)} layers" if len(self.layers) > 1 else ""
        return (
            f"ExponentSearch(exponent={self.exponent:.4f}, clip={self.clip:.4g}, {self.bits} bits, "
            f"{self.sqnr_db:.2f} dB, mse={self.mse:.6g}{over})"
        )


@dataclass(frozen=True, repr=False, eq=False)
class ClipSearch:
    """What a search for one shared clip found."""

    clip: float
    mse: float
    """Mean squared error there."""
    sqnr_db: float
    """Signal to quantization noise there, in dB."""
    grid: Grid
    clips: Float[np.ndarray, " clips"] = field(repr=False)
    """Every clip asked, ascending."""
    trace: Float[np.ndarray, " clips"] = field(repr=False)
    """The mean squared error at each of them."""
    bound: float = 0.0
    """Largest relative error that ``mse`` can have; 0 when it is exact."""

    def __repr__(self) -> str:
        return f"ClipSearch(clip={self.clip:.4g}, {self.grid}, {self.sqnr_db:.2f} dB, mse={self.mse:.6g})"


def search_exponent(  # noqa: PLR0917 - the words of the call, in the order they are spoken
    layer: Any,
    bits: int,
    granularity: str | Granularity = "channel",
    clip: float | Literal["joint"] = 1.0,
    rounding: Rounding = "power",
    objective: Objective = "norm",
    progress: Progress | None = None,
) -> ExponentSearch:
    """Find the exponent of the power grid with the smallest reconstruction error: coarse grid, then refinement.

    For several layers ONE exponent is found, as PowerQuant does. Its objective is the sum over layers of
    ``||W - W_hat||_2`` (``norm``, after PowerQuant, Yvinec et al., ICLR 2023, where a simplex minimises the error summed
    over layers; the paper's own formula was not at hand, p = 2 is the usual reading). ``mse`` sums the squared errors instead, and ``relative`` the squared errors over each
    layer's energy, which counts every layer alike. For one layer all three have the same minimum.

    Args:
        layer: a ``Sketch``, anything that ``sketch`` takes, a model (its linear and convolution layers), or a list or
            mapping of these.
        bits: of the power grid, 2 to 16.
        granularity: what shares a scale, where sketches are made.
        clip: fraction of absmax that the scale keeps, or ``joint`` to search it with the exponent.
        rounding: ``power`` or ``nearest``.
        objective: ``norm``, ``mse`` or ``relative``.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        QuantizationError: nothing to search, a clip out of range, or sketches that are not normalised by ``absmax``.
        GridError: bits out of range.
    """
    if objective not in {"norm", "mse", "relative"}:
        message = f"objective {objective!r} is not known; write norm, mse or relative"
        raise QuantizationError(message)
    if clip != "joint" and not (isinstance(clip, float | int) and 0.0 < clip <= 1.0):
        message = (
            f"a clip is the fraction of absmax that the scale keeps, above 0 and at most 1, or 'joint'; not {clip!r}"
        )
        raise QuantizationError(message)
    tell = progress or (lambda fraction: None)
    sketches = gather_sketches(layer, granularity, tell)
    clips = CLIPS if clip == "joint" else np.array([float(clip)])
    grids = [PowerGrid(bits=bits, exponent=float(exponent), rounding=rounding) for exponent in EXPONENTS]
    coarse = np.zeros((len(grids), len(clips)))
    for number, made in enumerate(sketches):
        coarse += _term(ask_many(made, grids, clips)[0], made, objective)
        tell(0.6 + 0.3 * (number + 1) / len(sketches))

    asked: list[tuple[float, float, float]] = []

    def value(exponent: float, at: float) -> float:
        grid = PowerGrid(bits=bits, exponent=exponent, rounding=rounding)
        total = float(sum(_term(ask(made, grid, at).error, made, objective) for made in sketches))
        asked.append((exponent, at, total))
        return total

    # Of equal values the largest clip and the exponent nearest 1: at 2 bits every exponent is the same grid.
    ties = np.argwhere(coarse <= coarse.min() * (1.0 + 1e-12))
    row, column = min(ties.tolist(), key=lambda pair: (-clips[pair[1]], abs(EXPONENTS[pair[0]] - 1.0)))
    best = (float(EXPONENTS[row]), float(clips[column]), float(coarse[row, column]))
    if not _flat(coarse):
        if clip == "joint":
            nelder_mead(
                lambda point: value(_inside(point[0], 0.05, 2.0), _inside(math.exp(point[1]), _SMALLEST_CLIP, 1.0)),
                (best[0], math.log(best[1])),
                (0.02, -math.log(CLIPS[-1] / CLIPS[-2])),
            )
            # The simplex may stop on a ledge. Two lines contain what else people try, so that joint is never worse:
            # every exponent without clipping, and the uniform grid (exponent 1) at every clip.
            free = float(EXPONENTS[np.argmin(coarse[:, -1])])
            golden_section(lambda exponent: value(exponent, 1.0), free - 0.02, free + 0.02, 5e-5)
            at_one = int(np.argmin(coarse[int(np.argmin(np.abs(EXPONENTS - 1.0)))]))
            lower, upper = clips[max(at_one - 1, 0)], clips[min(at_one + 1, len(clips) - 1)]
            golden_section(lambda at: value(1.0, at), float(lower), float(upper), 1e-4)
        else:
            golden_section(lambda exponent: value(exponent, best[1]), best[0] - 0.02, best[0] + 0.02, 5e-5)
        best = min([best, *asked], key=lambda entry: entry[2])
    tell(1.0)
    return _exponent_result(sketches, bits, rounding, objective, best, (EXPONENTS, clips, coarse, asked))


def best_clip(sketch: Sketch, grid: str | Grid) -> ClipSearch:
    """Find the one clip, shared by all groups, with the smallest error that a sketch tells: coarse grid, then golden section.

    Args:
        sketch: of the grid's normalization.
        grid: any scalar grid, or its text form.

    Raises:
        QuantizationError: see ``sketch_error``; also where the sketch cannot tell other clips than 1.
    """
    grid = as_grid(grid)
    errors = ask_many(sketch, [grid], CLIPS)[0][0]
    asked = list(zip(CLIPS.tolist(), errors.tolist(), strict=True))

    def value(clip: float) -> float:
        error = ask(sketch, grid, clip).error
        asked.append((clip, error))
        return error

    start = len(CLIPS) - 1 - int(np.argmin(errors[::-1]))
    lower, upper = CLIPS[max(start - 1, 0)], CLIPS[min(start + 1, len(CLIPS) - 1)]
    golden_section(value, float(lower), float(upper), 1e-4)
    clip, _ = min(asked, key=lambda entry: (entry[1], -entry[0]))
    asked.sort()
    answer = ask(sketch, grid, clip)
    report = answer.report()
    trace = np.array([error for _, error in asked]) / sketch.count
    return ClipSearch(clip, report.mse, report.sqnr_db, grid, np.array([at for at, _ in asked]), trace, report.bound)


def gather_sketches(layer: Any, granularity: str | Granularity, tell: Progress) -> list[Sketch]:
    """Return the sketches of whatever was given: a sketch, a layer, an array, a model, or several of them.

    Raises:
        QuantizationError: there is nothing to search.
    """
    if isinstance(layer, Sketch):
        return [layer]
    several = getattr(layer, "layers", None)
    items: Iterable[Any]
    if isinstance(several, Mapping):
        items = [item for item in several.values() if item.kind in {"linear", "conv"}]
    elif isinstance(layer, Mapping):
        items = layer.values()
    elif isinstance(layer, list | tuple) and layer and not np.isscalar(layer[0]):
        items = layer
    else:
        return [sketch(layer, granularity, "absmax", lambda fraction: tell(0.6 * fraction))]
    items = list(items)
    if not items:
        message = "there is no linear or convolution layer to search an exponent for"
        raise QuantizationError(message)
    made = []
    for number, item in enumerate(items):
        made.append(item if isinstance(item, Sketch) else sketch(item, granularity, "absmax"))
        tell(0.6 * (number + 1) / len(items))
    return made


def _term(error: Any, made: Sketch, objective: Objective) -> Any:
    """Return one layer's part of the objective from its sum of squared errors."""
    if objective == "norm":
        return np.sqrt(np.maximum(error, 0.0))
    if objective == "relative":
        return error / made.energy if made.energy > 0.0 else 0.0 * error
    return error


def _flat(values: np.ndarray) -> bool:
    """Say whether nothing is to be gained by moving: all values alike."""
    return bool(values.max() - values.min() <= 1e-12 * values.max())


def _inside(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _exponent_result(  # noqa: PLR0917
    sketches: list[Sketch],
    bits: int,
    rounding: Any,
    objective: str,
    best: tuple[float, float, float],
    trace: tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[float, float, float]]],
) -> ExponentSearch:
    """Put the result together, with the pooled error of all layers at the minimum."""
    exponent, clip, value = best
    grid = PowerGrid(bits=bits, exponent=exponent, rounding=rounding)
    answers = [ask(made, grid, clip) for made in sketches]
    error = sum(answer.error for answer in answers)
    slack = sum(answer.slack for answer in answers)
    energy = sum(made.energy for made in sketches)
    count = sum(made.count for made in sketches)
    sqnr = 10.0 * math.log10(energy / error) if error > 0.0 and energy > 0.0 else math.inf
    exponents, clips, coarse, asked = trace
    return ExponentSearch(
        exponent=exponent,
        clip=clip,
        mse=error / count,
        sqnr_db=sqnr,
        bits=bits,
        rounding=rounding,
        granularity=sketches[0].granularity,
        objective=objective,
        value=value,
        exponents=exponents,
        clips=clips,
        coarse=coarse,
        refinement=tuple(asked),
        layers=tuple(made.name for made in sketches),
        bound=slack / (error - slack) if error > slack else (0.0 if slack == 0.0 else math.inf),
    )

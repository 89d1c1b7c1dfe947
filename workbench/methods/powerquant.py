"""PowerQuant: the power grid whose exponent errs least on the weights, one for a layer or one for a whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.methods.method import Method, Outcome, register
from workbench.methods.run import Run, Trace
from workbench.methods.task import LayerTask
from workbench.quantization.exact import exact_error
from workbench.quantization.granularity import Granularity
from workbench.quantization.minimum import golden_section
from workbench.quantization.quantize import QuantizedTensor, quantize
from workbench.quantization.scales import BestClip
from workbench.quantization.search import ExponentSearch, Objective, best_clip, search_exponent
from workbench.quantization.sketch import Sketch, sketch

#: Exponents at which a search under per-group clips first looks; 1 is the uniform grid.
_COARSE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


@register
@dataclass(frozen=True)
class PowerQuant(Method):
    """Round to nearest on the power grid with the best exponent; no data needed.

    The published method has one exponent for the whole model and scales that reach the largest weight; below about five
    bits a clipped uniform grid often errs less than that. ``joint`` therefore searches the exponent with the clip: since
    exponent 1 is the uniform grid, its answer is never above the best-clipped uniform grid of the same bits.

    Source: Yvinec et al., PowerQuant, ICLR 2023 (arXiv 2301.09858): least error of the weights over one exponent. The
    joint search, and clips of groups, are derived here.

    Args:
        joint: search the clip with the exponent: one clip for all groups, or (``clip=group``) each group's best.
        share: ``layer`` for an exponent of the layer's own, ``model`` for one of the whole model: a run over a model
            then asks ``for_model`` first. A single layer is a model of one layer.
        exponent: the exponent, where it is known; None searches.
        clip: ``rule`` leaves scales to the recipe's rule, ``group`` takes the best clip of each group at the exponent
            found, a number above 0 and at most 1 is one clip for all.

    Raises:
        QuantizationError: a setting out of range.
    """

    word: ClassVar[str] = "powerquant"
    title: ClassVar[str] = "PowerQuant"
    summary: ClassVar[str] = "round to nearest on the power grid whose exponent errs least on the weights"

    joint: bool = False
    share: str = "layer"
    exponent: float | None = None
    clip: str = "rule"

    def __post_init__(self) -> None:
        if self.share not in {"layer", "model"}:
            message = f"an exponent is shared by a layer or a model: share=layer or share=model, not {self.share!r}"
            raise QuantizationError(message)
        if self.exponent is not None and not 0.0 < self.exponent <= 2.0:
            message = f"an exponent lies above 0 and at most at 2, not at {self.exponent!r}"
            raise QuantizationError(message)
        if self.clip not in {"rule", "group"}:
            try:
                given = float(self.clip)
            except ValueError:
                given = float("nan")
            if not 0.0 < given <= 1.0:
                message = f"clip of powerquant is rule, group, or a fraction above 0 and at most 1, not {self.clip!r}"
                raise QuantizationError(message)

    def check(self, task: LayerTask) -> None:
        """Refuse a grid that has no exponent.

        Raises:
            QuantizationError: see above.
        """
        super().check(task)
        if not isinstance(task.grid, PowerGrid):
            bits = task.grid.bits
            message = (
                f"PowerQuant searches the exponent of a power grid, and {task.grid} has none; write power:bits={bits}"
            )
            raise QuantizationError(message)
        if not task.grid.signed:
            message = f"weights take both signs, and {task.grid} does not; write power:bits={task.grid.bits}"
            raise QuantizationError(message)

    def for_model(
        self,
        layers: Any,
        bits: int,
        granularity: str | Granularity = "channel",
        *,
        rounding: Any = "power",
        progress: Callable[[float], Any] | None = None,
    ) -> PowerQuant:
        """Return the method with the one exponent (and, where joint, the one clip) of all layers filled in.

        Args:
            layers: sketches, layers or arrays, as ``search_exponent`` takes them; a model.
            bits: of the power grid.
            granularity: what shares a scale.
            rounding: of the power grid.
            progress: told the finished fraction; may raise ``Cancelled``.

        Raises:
            QuantizationError: nothing to search.
        """
        if self.exponent is not None:
            return self
        joint = self.joint and self.clip != "group"
        found = model_exponent(layers, bits, granularity, joint=joint, rounding=rounding, progress=progress)
        return replace(self, exponent=found.exponent, joint=False, clip=repr(found.clip) if joint else self.clip)

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        grid = task.grid
        assert isinstance(grid, PowerGrid)
        notes = ["at 2 bits every exponent gives the same levels"] if grid.bits == 2 else []
        seen = sketch(task.weight, task.granularity, "absmax")
        if self.joint and self.clip == "group":
            chosen, trace = self._exponent_under_group_clips(task, grid, run)
            return Outcome(task.round_to_nearest(chosen, BestClip()), trace, notes=tuple(notes))
        trace = Trace()
        if self.exponent is None:
            found = search_exponent(
                seen,
                grid.bits,
                clip="joint" if self.joint else 1.0,
                rounding=grid.rounding,
                progress=lambda fraction: run.progress(fraction, task.name),
            )
            chosen, shared = replace(grid, exponent=found.exponent), found.clip
            trace = _coarse_trace(found)
        else:
            chosen, shared = replace(grid, exponent=self.exponent), 1.0
            if self.joint:
                shared = best_clip(seen, chosen).clip
        if self.joint:
            return Outcome(self._least(task, grid, seen, (chosen, shared)), trace, notes=tuple(notes))
        if self.clip == "group":
            return Outcome(task.round_to_nearest(chosen, BestClip()), trace, notes=tuple(notes))
        if self.clip == "rule":
            return Outcome(task.round_to_nearest(chosen), trace, notes=tuple(notes))
        return Outcome(_clipped(task, chosen, float(self.clip)), trace, notes=tuple(notes))

    def _least(self, task: LayerTask, grid: PowerGrid, seen: Sketch, found: tuple[PowerGrid, float]) -> QuantizedTensor:
        """Return the joint optimum, or what it contains where that errs less: a sketch knows errors to a bound only."""
        tried = [found]
        if self.exponent is None:
            uniform = replace(grid, exponent=1.0)
            tried += [(uniform, best_clip(seen, uniform).clip), (found[0], 1.0)]
        errors = [exact_error(task.weight, each, task.granularity, clip=clip).mse for each, clip in tried]
        return _clipped(task, *tried[int(np.argmin(errors))])

    def _exponent_under_group_clips(self, task: LayerTask, grid: PowerGrid, run: Run) -> tuple[PowerGrid, Trace]:
        """Search the exponent with the smallest error when every group takes its best clip, exactly."""
        if self.exponent is not None:
            return replace(grid, exponent=self.exponent), Trace()
        asked: dict[float, float] = {}

        def value(exponent: float) -> float:
            if exponent not in asked:
                each = replace(grid, exponent=exponent)
                asked[exponent] = exact_error(task.weight, each, task.granularity, BestClip()).mse
                run.progress(min(len(asked) / 20.0, 1.0), task.name)
            return asked[exponent]

        start = min(_COARSE, key=lambda exponent: (value(exponent), abs(exponent - 1.0)))
        if max(asked.values()) > min(asked.values()) * (1.0 + 1e-12):
            golden_section(value, start - 0.1, start + 0.1, 0.01)
        best = min(asked, key=lambda exponent: (asked[exponent], abs(exponent - 1.0)))
        run.progress(1.0, task.name)
        ordered = sorted(asked)
        losses = tuple(asked[exponent] for exponent in ordered)
        return replace(grid, exponent=best), Trace(tuple(range(len(ordered))), losses, {"exponent": tuple(ordered)})


def model_exponent(
    layers: Any,
    bits: int,
    granularity: str | Granularity = "channel",
    *,
    joint: bool = False,
    rounding: Any = "power",
    objective: Objective = "norm",
    progress: Callable[[float], Any] | None = None,
) -> ExponentSearch:
    """Find the one exponent that errs least over all layers of a model, as PowerQuant does (see ``search_exponent``).

    Args:
        layers: sketches, layers or arrays in a list or mapping, or a model (its linear and convolution layers).
        bits: of the power grid, 2 to 16.
        granularity: what shares a scale, where sketches are still to be made.
        joint: whether one clip, shared by all groups of all layers, is searched with it.
        rounding: of the power grid.
        objective: ``norm``, ``mse`` or ``relative``.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        QuantizationError: there is nothing to search.
    """
    return search_exponent(layers, bits, granularity, "joint" if joint else 1.0, rounding, objective, progress)


def _clipped(task: LayerTask, grid: PowerGrid, clip: float) -> QuantizedTensor:
    """Return the weight rounded to nearest under one clip of every group's absmax."""
    return replace(quantize(task.weight, grid, task.granularity, clip=clip), shape=task.shape, name=task.name)


def _coarse_trace(found: ExponentSearch) -> Trace:
    """Return the coarse search as a curve over the exponents: at each, the smallest objective over the clips."""
    least = found.coarse.min(axis=1)
    return Trace(tuple(range(len(least))), tuple(map(float, least)), {"exponent": tuple(map(float, found.exponents))})

"""k-means: the levels themselves are fitted, one codebook for the layer on the axis where every group's scale is 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from workbench.errors import QuantizationError
from workbench.grids import CodebookGrid
from workbench.methods.encoding import round_under
from workbench.methods.importance import Importance, weighted_scales
from workbench.methods.method import Method, Need, Outcome, register
from workbench.methods.run import Run, Trace
from workbench.methods.task import LayerTask
from workbench.quantization.lloyd import fit_levels
from workbench.quantization.scales import AbsMax, BestClip, Scales, find_scales
from workbench.quantization.source import as_matrix

#: Bins of the normalised axis from -1 to 1: narrow beside any gap between levels, and each keeps its mean.
_BINS = 1 << 16


def check_codebook_bits(task: LayerTask) -> None:
    """Refuse more bits than a codebook is fitted for.

    Raises:
        QuantizationError: above 8 bits.
    """
    if task.grid.bits > 8:
        message = f"a codebook is fitted for 1 to 8 bits, and {task.grid} has {task.grid.bits}"
        raise QuantizationError(message)


@register
@dataclass(frozen=True)
class KMeans(Method):
    """A codebook fitted to the layer: the 2^bits levels with the smallest squared error of its weights.

    The bits are those of the task's grid; its levels are not used. All groups share one codebook, on weights divided by
    the scale of their group (the recipe's rule), each counted with its scale squared, so that what is minimised is the
    error of the weights themselves. A group of one weight value, or of none, is represented too. Groups
    have no offsets and no levels of their own: against a grid that has either (asymmetric, ``bcq``) one codebook can lose.

    Source: Lloyd 1982 and Max 1960 for the iteration (one-dimensional k-means), from a start at equal shares of
    density^(1/3). Weighting by E[x^2] is what SqueezeLLM (Kim et al. 2023, arXiv 2306.07629) does with the Fisher
    diagonal; one codebook for a whole layer, and ``turns``, are derived here.

    Args:
        weighted: weigh each weight's error with E[x^2] of its input (and E[g^2] of its output where that is known).
            Needs moments; without it no data are needed.
        turns: how often the scales of groups and the codebook take turns afterwards, at most: the scale with the smallest
            error under the codebook, then the codebook fitted again. Ends where the error no longer falls.
        iterations: of one fit, at most.

    Raises:
        QuantizationError: a setting out of range.
    """

    word: ClassVar[str] = "kmeans"
    title: ClassVar[str] = "k-means"
    summary: ClassVar[str] = "a codebook of levels fitted to the layer's weights"

    weighted: bool = False
    turns: int = 0
    iterations: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("turns", 0), ("iterations", 1)):
            if getattr(self, name) < least:
                message = f"{name} of kmeans is at least {least}, not {getattr(self, name)}"
                raise QuantizationError(message)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments where errors are weighted, else nothing."""
        return frozenset({"moments"}) if self.weighted else frozenset()

    def check(self, task: LayerTask) -> None:
        """Refuse a task without the moments that are asked for, or more bits than a codebook is fitted for.

        Raises:
            QuantizationError: see above.
        """
        super().check(task)
        check_codebook_bits(task)

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        seen = task if self.weighted else replace(task, statistics=None)
        importance = Importance.of(seen)
        # No scale depends on levels that are still to be fitted: NF4 only says that scales are magnitudes.
        rule = AbsMax() if isinstance(task.scale, BestClip) else task.scale
        scales = find_scales(as_matrix(task.weight), CodebookGrid(), task.granularity, rule)
        best = fit_codebook(task, scales, importance, task.grid.bits, self.iterations)
        losses = [best.loss]
        turns = self.turns or int(isinstance(task.scale, BestClip))
        for turn in range(turns):
            run.progress(turn / turns, task.name)
            scales = weighted_scales(seen, best.grid, turns=3 if self.turns else 0).scales
            fit = fit_codebook(task, scales, importance, task.grid.bits, self.iterations)
            if fit.loss >= best.loss * (1.0 - 1e-6):
                break
            best = fit
            losses.append(fit.loss)
        return Outcome(round_under(task, best.grid, best.scales), Trace(tuple(range(len(losses))), tuple(losses)))


@dataclass(frozen=True, eq=False)
class LayerCodebook:
    """A codebook, and the scales it was fitted under."""

    grid: CodebookGrid
    scales: Scales
    """Of the groups, so that every normalised weight lies within [-1, 1]."""
    loss: float
    """Mean squared error of the weights, weighted by their importance."""


def fit_codebook(
    task: LayerTask, scales: Scales, importance: Importance, bits: int, iterations: int = 1000
) -> LayerCodebook:
    """Fit one codebook to a weight under known scales, every weight counted with scale^2 times its importance.

    Where weights lie beyond their scales, all scales grow by one factor: levels end at 1, and may stop short of it.

    Args:
        task: the layer.
        scales: of its groups.
        importance: of its weights.
        bits: 1 to 8.
        iterations: of Lloyd's iteration, at most.
    """
    rows, depth = task.weight.shape
    group_of = np.arange(depth) // task.granularity.group_size(depth)
    step = max(1, (1 << 20) // depth)
    blocks = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    reach = max(1.0, *(float(np.abs(_places(task, scales, group_of, *block)[0]).max()) for block in blocks))
    scales = replace(scales, scale=(scales.scale * np.float32(reach * (1.0 + 1e-6 * (reach > 1.0)))).astype(np.float32))
    mass, first, energy = np.zeros(_BINS), np.zeros(_BINS), 0.0
    for start, stop in blocks:
        place, scale = _places(task, scales, group_of, start, stop)
        counted = importance.rows(start, stop) * scale**2
        cell = np.clip(((place + 1.0) * (_BINS / 2)).astype(np.int64), 0, _BINS - 1).ravel()
        mass += np.bincount(cell, counted.ravel(), _BINS)
        first += np.bincount(cell, (counted * place).ravel(), _BINS)
        energy += float((counted * place**2).sum())
    if np.count_nonzero(mass) < 2:
        return LayerCodebook(_one_value(mass, first), scales, 0.0)
    fit = fit_levels(mass, first, bits, energy=energy, count=task.weight.size, iterations=iterations, name=task.name)
    return LayerCodebook(fit.grid, scales, float(fit.trace[-1]))


def _places(
    task: LayerTask, scales: Scales, group_of: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return w / s of some rows, 0 where s is 0, and s."""
    scale = np.broadcast_to(scales.scale, (len(task.weight), scales.scale.shape[1]))[start:stop]
    scale = scale.astype(np.float64)[:, group_of]
    return np.divide(task.weight[start:stop], scale, out=np.zeros_like(scale), where=scale != 0.0), scale


def _one_value(mass: np.ndarray, first: np.ndarray) -> CodebookGrid:
    """Return the codebook of a layer with one normalised value, or with none: that value, and zero or one beside it."""
    found = float((first[mass > 0.0] / mass[mass > 0.0]).sum())
    return CodebookGrid((0.0, found if found != 0.0 else 1.0))

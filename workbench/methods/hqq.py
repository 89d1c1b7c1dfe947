"""HQQ: half-quadratic quantization, a robust fit of zero points (or scales) to the weights, without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.grids.grid import Grid
from workbench.methods.encoding import round_under
from workbench.methods.method import Method, Outcome, register
from workbench.methods.run import Recorder, Run
from workbench.methods.task import LayerTask
from workbench.quantization.granularity import PerTensor
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import AbsMax, Scales, find_scales
from workbench.quantization.source import as_matrix


@register
@dataclass(frozen=True)
class HQQ(Method):
    """Half-quadratic splitting of min ||W - W_hat||_p^p over the zero points, p < 1, so that outliers may err.

    In turns: the residual W - W_hat is shrunk to W_e = sign(x) max(|x| - |x|^(p-1) / beta, 0), and the zero point of each
    group becomes the mean of q - (W - W_e) / step; beta grows by ``kappa``. It ends when the mean magnitude of the
    residual, over the whole layer, no longer falls.

    - On ``uniform:range=asymmetric`` the zero point is a real number as in the authors' code: the result lies on the
      grid ``power:exponent=1,shifted=true`` of the same bits, the same equal steps behind a real offset, and its offsets are
      counted as float32. ``zero=whole`` keeps the grid and rounds the zero points at the end.
    - On shifted power grids the offset is fitted likewise.
    - On grids without an offset the scale of each group takes its place: sum l (w - w_e) / sum l^2 over its levels l, the
      least-squares answer of the same splitting. Derived here.

    With the usual settings and weights far below 1 the shrinkage removes every residual below beta^(-1 / (2 - p)) (0.17 at
    the defaults), so that the update is the plain mean, a least-squares fit: the authors' constants are kept all the same.

    Source: Badri and Shaji, Half-Quadratic Quantization, 2023 (mobiusml.github.io/hqq_blog), its solver; defaults, first
    range (each group's least to largest weight) and ending as in the authors' package, which today leaves beta constant
    (``kappa=1``). The package's limits for half precision (steps of at least 5e-5) are left out.

    Args:
        lp_norm: p, above 0 and at most 1.
        beta: the splitting's first penalty, above 0, for weights as they are.
        kappa: factor of beta from one iteration to the next, at least 1.
        iterations: at most this many.
        zero: ``real`` or ``whole``, for grids with an integer zero point.
        best: each group keeps the best of all iterates by its own sum |w - w_hat|^p, the start among them. The authors'
            code takes the last (``best=false``).

    Raises:
        QuantizationError: a setting out of range.
    """

    word: ClassVar[str] = "hqq"
    title: ClassVar[str] = "HQQ"
    summary: ClassVar[str] = "half-quadratic fit of zero points (or scales) to the weights, robust to outliers"

    lp_norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20
    zero: str = "real"
    best: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.lp_norm <= 1.0:
            message = f"lp_norm of hqq lies above 0 and at most at 1, not at {self.lp_norm!r}"
            raise QuantizationError(message)
        if not (self.beta > 0.0 and self.kappa >= 1.0 and self.iterations >= 0):
            message = f"hqq needs beta above 0, kappa of at least 1 and no fewer than 0 iterations, not {self}"
            raise QuantizationError(message)
        if self.zero not in {"real", "whole"}:
            message = f"zero points of hqq are real or whole, not {self.zero!r}"
            raise QuantizationError(message)

    @property
    def steps_planned(self) -> int:
        """Iterations."""
        return self.iterations

    def check(self, task: LayerTask) -> None:
        """Refuse grids whose levels or scale formats leave nothing to fit.

        Raises:
            QuantizationError: see above.
        """
        super().check(task)
        if task.grid.fitted or check_scale_format(None, task.grid) != "float32":
            message = (
                f"HQQ fits real zero points and scales, which {task.grid} does not have; "
                f"take uniform:bits={task.grid.bits},range=asymmetric"
            )
            raise QuantizationError(message)

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        from workbench.kernels.hqq import half_quadratic_pass

        fit = _Fit(task, _working_grid(task.start_grid), self)
        recorder = Recorder(run, task.name, self.iterations)
        scale, offset = fit.start()
        best = _Best(scale, offset)
        beta, previous, step = self.beta, np.inf, 0
        while True:
            sums = half_quadratic_pass(
                task.weight,
                fit.grid,
                scale,
                offset,
                fit.size,
                beta=beta,
                norm=self.lp_norm,
                fit_offset=fit.offsets,
            )
            best.keep(fit.pooled(sums.loss), scale, offset)
            recorder.record(step, float(sums.loss.sum()) / task.weight.size, beta=beta)
            if step == self.iterations or previous < 0.0:
                break
            magnitude = float(sums.magnitude.sum())
            scale, offset = fit.next(fit.pooled(sums.above), fit.pooled(sums.below), scale, offset)
            beta *= self.kappa
            # The authors' code still makes the update of the iteration that no longer improves; then it ends.
            previous = magnitude if magnitude < previous else -1.0
            step += 1
        if self.best:
            scale, offset = best.scale, best.offset
        grid = fit.grid
        if task.start_grid.integer_zero_point and self.zero == "whole":
            grid, offset = task.start_grid, fit.whole(scale, offset)
        return Outcome(round_under(task, grid, Scales(scale.astype(np.float32), offset)), recorder.trace())


@dataclass(eq=False)
class _Best:
    """The best scale and offset that each group has met."""

    scale: np.ndarray
    offset: np.ndarray
    loss: np.ndarray | None = None

    def keep(self, loss: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> None:
        """Take what is better than before, group by group."""
        better = np.ones(loss.shape, dtype=bool) if self.loss is None else loss < self.loss
        self.scale, self.offset = np.where(better, scale, self.scale), np.where(better, offset, self.offset)
        self.loss = loss if self.loss is None else np.minimum(loss, self.loss)


@dataclass(eq=False)
class _Fit:
    """What is fitted on one task: offsets on grids that have them, else scales."""

    task: LayerTask
    grid: Grid
    method: HQQ

    @property
    def offsets(self) -> bool:
        return self.grid.normalization == "range"

    @property
    def size(self) -> int:
        return self.task.granularity.group_size(self.task.weight.shape[1])

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the first scale and offset, float64: the recipe's rule, or each group's own range from its least weight."""
        task = self.task
        if not self.offsets or not isinstance(task.scale, AbsMax) or self.method.zero == "whole":
            found = find_scales(as_matrix(task.weight), self.grid, task.granularity, task.scale)
            return found.scale.astype(np.float64), found.offset
        starts = np.arange(0, task.weight.shape[1], self.size)
        low = np.minimum.reduceat(task.weight, starts, axis=1).astype(np.float64)
        high = np.maximum.reduceat(task.weight, starts, axis=1).astype(np.float64)
        if isinstance(task.granularity, PerTensor):
            low, high = low.min(axis=0, keepdims=True), high.max(axis=0, keepdims=True)
        # A group of one value: that value is the level 0 behind its offset.
        scale = np.where(high > low, high - low, np.abs(high)).astype(np.float32).astype(np.float64)
        return scale, np.divide(-low, scale, out=np.zeros_like(low), where=scale > 0.0)

    def pooled(self, sums: np.ndarray) -> np.ndarray:
        """Return sums over scale groups; rows that share a scale are added up."""
        return sums.sum(axis=0, keepdims=True) if isinstance(self.task.granularity, PerTensor) else sums

    def next(
        self, above: np.ndarray, below: np.ndarray, scale: np.ndarray, offset: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the next scale and offset; a scale is rounded to float32 at once, as it will be stored."""
        if self.offsets:
            return scale, above / below
        found = np.divide(above, below, out=scale.copy(), where=below > 0.0).astype(np.float32).astype(np.float64)
        # A scale neither vanishes nor changes its sign: its codes would then mean something else.
        return np.where(found * scale > 0.0, found, scale), offset

    def whole(self, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Return offsets rounded to whole codes; a group that errs less with its first zero point keeps that."""
        from workbench.kernels.hqq import half_quadratic_pass

        last = len(self.grid.levels) - 1
        tried = [np.rint(each * last) / last for each in (offset, self.start()[1])]
        losses = [
            self.pooled(
                half_quadratic_pass(
                    self.task.weight,
                    self.grid,
                    scale,
                    each,
                    self.size,
                    beta=self.method.beta,
                    norm=self.method.lp_norm,
                    fit_offset=True,
                ).loss
            )
            for each in tried
        ]
        return np.where(losses[0] <= losses[1], *tried)


def _working_grid(grid: Grid) -> Grid:
    """Return the grid to fit on: equal steps behind a real offset where the grid has whole zero points."""
    if grid.integer_zero_point:
        return PowerGrid(bits=grid.bits, exponent=1.0, shifted=True)
    return grid

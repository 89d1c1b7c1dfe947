"""GPTQ: round column by column, each column's error made good by the columns that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.grids.grid import Grid
from workbench.methods.encoding import tensor_of
from workbench.methods.gptq_columns import (
    DeviceColumns,
    Factor,
    HostColumns,
    Walk,
    factor_inverse,
    nearest_grid,
    walk_columns,
)
from workbench.methods.gptq_descent import Coded, descend_codes, row_errors
from workbench.methods.method import Method, Need, Outcome, register
from workbench.methods.run import Run, Trace
from workbench.methods.task import LayerTask
from workbench.quantization.granularity import PerAxis, PerGroup, PerTensor
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import Scales, find_scales
from workbench.quantization.source import as_matrix

#: Where exponents are tried beside the starting one (``exponents``), evenly spread.
_EXPONENTS = (0.4, 1.0)


@register
@dataclass(frozen=True)
class GPTQ(Method):
    """Second-order rounding under the Gram matrix of the layer's inputs.

    Columns are rounded in order; the error of each, over the diagonal of the inverse's Cholesky factor, moves all later
    columns by the factor's row, which is the least-squares answer of the weights not yet rounded. The Gram matrix is that
    of the inputs as the model quantized so far gives them, and the target is W x on *these* inputs: what the layers
    before lost is not made good.

    Every weight takes the level nearest by value, also on grids that round in another domain (power, logarithm). Inputs
    that were always zero keep the nearest level of their weights (the authors' code sets those weights to zero).

    Source: Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323), algorithm 1; options as in the authors' code. The descent
    after it (``refine``, ``rescale``) and ``exponents`` are derived here.

    Args:
        damp: fraction of the Gram matrix's mean diagonal that is added to the diagonal; above 0 where inputs are fewer
            than columns. Raised tenfold until the matrix is positive definite; a note says so.
        block: columns between two updates of all that follow. It changes the speed, not the answer.
        act_order: columns in the order of falling input energy. With groups it takes static groups, since a group's
            columns are then no longer neighbours.
        static_groups: scales of groups from the weights as they were; else a group's scale is found from the weights as
            the walk has left them when it gets there. Scales of rows and of the tensor, and e4m3 scales (whose common
            factor looks at the whole tensor), are always found before.
        refine: passes of cyclic descent over all codes afterwards, at most, under the damped Gram matrix; the trace holds
            that loss, which never rises. Rows whose outputs still err more than those of rounding to nearest take that, so
            that with ``refine`` above 0 no row is worse.
        rescale: whether each of these passes ends with the best scale of each group (not for one scale of the whole
            tensor, nor for 8-bit scales).
        exponents: where the recipe leaves a power grid's exponent open (``exponent=search``), so many exponents from 0.4 to
            1 are tried besides the one that errs least on the weights, and the smallest output error wins.

    Raises:
        QuantizationError: a setting out of range.
    """

    word: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ"
    summary: ClassVar[str] = "column by column, each error made good by the columns that follow (second order)"

    damp: float = 0.01
    block: int = 128
    act_order: bool = False
    static_groups: bool = False
    refine: int = 0
    rescale: bool = False
    exponents: int = 0

    def __post_init__(self) -> None:
        for name, least in (("damp", 0.0), ("block", 1), ("refine", 0), ("exponents", 0)):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= least):
                message = f"{name} of {self.word} is at least {least:g}, not {value!r}"
                raise QuantizationError(message)

    @property
    def needs(self) -> frozenset[Need]:
        """The Gram matrix."""
        return frozenset({"gram"})

    def check(self, task: LayerTask) -> None:
        """Refuse a task without a Gram matrix, or a grid whose levels are fitted to each group.

        Raises:
            QuantizationError: see above.
        """
        super().check(task)
        if task.grid.fitted:
            message = (
                f"{self.title} rounds to known levels, and {task.grid} fits its own to each group; pick another grid"
            )
            raise QuantizationError(message)

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        factors = self.factors(task)
        grids = [task.start_grid]
        if task.search and isinstance(task.start_grid, PowerGrid):
            spread = np.linspace(*_EXPONENTS, self.exponents) if self.exponents else ()
            grids += [replace(task.start_grid, exponent=float(exponent)) for exponent in spread]
        best: tuple[float, QuantizedTensor, Trace, list[str]] | None = None
        for number, grid in enumerate(grids):
            share = _share(run, task.name, number, len(grids))
            found, trace, notes = self.round_on(task, grid, factors, run, share)
            error = task.error_of(found) if len(grids) > 1 else 0.0
            if best is None or error < best[0]:
                best = (error, found, trace, notes)
        assert best is not None
        _, quantized, trace, notes = best
        return Outcome(quantized, trace, notes=(*self.notes_on(factors), *notes))

    def factors(self, task: LayerTask) -> list[tuple[np.ndarray, Factor]]:
        """Return, for each Gram matrix, the order of the columns and the factor of the inverse in that order.

        Raises:
            QuantizationError: a matrix that no damping makes positive definite.
        """
        assert task.statistics is not None and task.statistics.gram is not None
        return [_ordered_factor(gram, self, task.name) for gram in task.statistics.gram]

    def notes_on(self, factors: list[tuple[np.ndarray, Factor]]) -> list[str]:
        """Return what a person should know of the Gram matrices."""
        return _factor_notes([factor for _, factor in factors])

    def round_on(
        self,
        task: LayerTask,
        grid: Grid,
        factors: list[tuple[np.ndarray, Factor]],
        run: Run,
        tell: Callable[[float], None],
    ) -> tuple[QuantizedTensor, Trace, list[str]]:
        """Round the whole layer on one grid; returns the result, the curve of its refinement, and notes."""
        assert task.statistics is not None and task.statistics.gram is not None
        rows, depth = task.weight.shape
        nearest = nearest_grid(grid)
        size = task.granularity.group_size(depth)
        static = (
            self.static_groups
            or self.act_order
            or not isinstance(task.granularity, PerGroup)
            or check_scale_format(None, grid) == "e4m3"
        )
        known = find_scales(as_matrix(task.weight), grid, task.granularity, task.scale)
        scale, offset = known.scale.copy(), known.offset.copy()
        group_of = (np.arange(depth) // size).astype(np.int32)
        indices = np.empty((rows, depth), dtype=np.uint16)
        count = len(factors)
        walk = Walk(depth, self.block, depth if static else size)
        for number, (order, factor) in enumerate(factors):
            part = slice(rows * number // count, rows * (number + 1) // count)
            kept = part if len(scale) > 1 else slice(None)
            columns = _columns(run, task.weight[part][:, order], factor.upper, nearest, group_of[order], walk.width)
            walk_columns(
                columns,
                walk,
                scale[kept],
                offset[kept],
                find=None if static else lambda _, weights: _group_scales(weights, grid, task),
                tell=lambda fraction, number=number: tell((number + fraction) / count * (0.5 if self.refine else 1.0)),
            )
            indices[part, order] = columns.indices()
        coded = Coded(indices, scale, offset, group_of)
        trace, notes = Trace(), []
        if self.refine:
            trace, notes = self._refine(task, grid, coded, [factor.damping for _, factor in factors], (run, tell))
        # Clips are those of the rule where its scales were kept.
        clip = known.clip if static and not self.rescale else np.ones((1, 1))
        scales = Scales(coded.scale, coded.offset, known.tensor_scale, clip)
        return tensor_of(task, grid, coded.indices, scales), trace, notes

    def _refine(
        self,
        task: LayerTask,
        grid: Grid,
        coded: Coded,
        damping: list[float],
        listeners: tuple[Run, Callable[[float], None]],
    ) -> tuple[Trace, list[str]]:
        """Descend from what the walk found, then give rows that rounding to nearest serves better what that gives."""
        run, progress = listeners
        assert task.statistics is not None and task.statistics.gram is not None
        nearest = nearest_grid(grid)
        grams = np.asarray(task.statistics.gram, dtype=np.float64)
        whole = isinstance(task.granularity, PerTensor)
        rescale = self.rescale and not whole and check_scale_format(None, grid) == "float32"
        plain = task.round_to_nearest(grid)
        table = np.argsort(grid.codes, kind="stable")
        start = Coded(
            table[np.searchsorted(grid.codes[table], plain.codes)].astype(np.uint16),
            plain.scale,
            plain.offset,
            coded.group_of,
        )
        rows, count = len(task.weight), len(grams)
        curves: list[list[float]] = []
        kept = 0
        for number, gram in enumerate(grams):
            part = slice(rows * number // count, rows * (number + 1) // count)
            weight = task.weight[part].astype(np.float64)
            mine, other = _rows(coded, part), _rows(start, part)
            # Undamped, the descent fits the calibration rows: what it gains there it loses on rows that it has not seen.
            damped = gram + damping[number] * np.eye(len(gram))
            curve: list[float] = []
            curves.append(curve)

            def tell(sweep: int, loss: float, curve: list[float] = curve, number: int = number) -> None:
                curve.append(loss)
                run.on_step(task.name, sweep, self.refine, loss)
                progress(0.5 + 0.5 * (number + sweep / self.refine) / count)

            descend_codes(weight, mine, damped, nearest, sweeps=self.refine, rescale=rescale, tell=tell)
            worse = row_errors(weight, other.decoded(grid), gram) < row_errors(weight, mine.decoded(grid), gram)
            mine.take_rows(other, worse)
            kept += int(worse.sum())
        notes = [f"{kept:,} of {rows:,} rows kept their nearest levels, which err less"] if kept else []
        longest = max(map(len, curves))
        padded = np.array([curve + curve[-1:] * (longest - len(curve)) for curve in curves])
        return Trace(tuple(range(longest)), tuple(padded.mean(axis=0).tolist())), notes


def _rows(coded: Coded, part: slice) -> Coded:
    """Return views of some rows."""
    shared = len(coded.scale) == 1
    scales = (coded.scale, coded.offset) if shared else (coded.scale[part], coded.offset[part])
    return Coded(coded.indices[part], *scales, coded.group_of)


def _share(run: Run, name: str, number: int, count: int) -> Callable[[float], None]:
    """Return what tells the run about its ``number``-th of ``count`` equal parts."""
    return lambda fraction: run.progress((number + fraction) / count, name)


def _ordered_factor(gram: np.ndarray, method: GPTQ, name: str) -> tuple[np.ndarray, Factor]:
    """Return the order of the columns, and the factor of the inverse in that order."""
    order = np.arange(len(gram))
    if method.act_order:
        order = np.argsort(-np.diagonal(gram), kind="stable")
        gram = gram[np.ix_(order, order)]
    return order, factor_inverse(gram, method.damp, name)


def _columns(  # noqa: PLR0917
    run: Run, weight: np.ndarray, upper: np.ndarray, grid: Grid, group_of: np.ndarray, width: int
) -> HostColumns | DeviceColumns:
    """Return the walk's weight where the run wants it."""
    group_of = np.ascontiguousarray(group_of)
    if run.device == "cpu":
        return HostColumns(weight, upper, grid, group_of, width)
    return DeviceColumns(weight, upper, grid, group_of, width, run.device)


def _group_scales(weights: np.ndarray, grid: Grid, task: LayerTask) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of one group of all rows, each one column."""
    found = find_scales(as_matrix(weights), grid, PerAxis(0), task.scale)
    return found.scale, found.offset


def _factor_notes(factors: list[Factor]) -> list[str]:
    notes = []
    dead = sum(factor.dead for factor in factors)
    if dead:
        notes.append(f"{dead:,} inputs were always zero; their weights keep the nearest level")
    raised = max(factor.raised for factor in factors)
    if raised:
        notes.append(f"the damping had to be raised {raised} times tenfold before the Gram matrix could be factored")
    return notes

"""GANQ: second-order codes and a codebook fitted to the layer's outputs, in turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids import CodebookGrid
from workbench.methods.gptq import GPTQ
from workbench.methods.importance import Importance
from workbench.methods.kmeans import check_codebook_bits, fit_codebook
from workbench.methods.method import Method, Need, Outcome, register
from workbench.methods.run import Recorder, Run
from workbench.methods.task import LayerTask
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.scales import AbsMax, BestClip, GivenScale, find_scales
from workbench.quantization.source import as_matrix


@register
@dataclass(frozen=True)
class GANQ(Method):
    """Codes by back-substitution under the Gram matrix, levels by least squares under it, in turns.

    The first codebook is that of k-means, weighted by the energy of the inputs. Then, ``iterations`` times: all codes as
    GPTQ finds them (the back-substitution is the same recursion), and the levels T that solve
    min sum_rows (w - s T[q]) G (w - s T[q])^T for these codes. The best codebook met is kept. Bits are those of the task's
    grid; its levels are not used, and neither are offsets: against an asymmetric or fitted grid one codebook can lose.

    Source: Zhao and Yuan, GANQ, 2025 (arXiv 2501.12956), for the turns and both updates. The paper gives every row a
    codebook of its own; here ONE serves the layer, on weights divided by their group's scale, so that it costs next to no
    bits. That, and descent on codes and scales within a turn, are derived here; the paper's figures do not apply.

    Args:
        iterations: turns of codes and levels.
        damp: as in GPTQ.
        act_order: as in GPTQ.
        refine: passes of cyclic descent on the codes within each turn, as in GPTQ.
        rescale: whether scales take part in that descent.

    Raises:
        QuantizationError: a setting out of range.
    """

    word: ClassVar[str] = "ganq"
    title: ClassVar[str] = "GANQ"
    summary: ClassVar[str] = "second-order codes, and one codebook fitted to the layer's outputs, in turns"

    iterations: int = 10
    damp: float = 0.01
    act_order: bool = False
    refine: int = 0
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 1:
            message = f"iterations of ganq is at least 1, not {self.iterations}"
            raise QuantizationError(message)
        self._rounding()

    @property
    def needs(self) -> frozenset[Need]:
        """The Gram matrix."""
        return frozenset({"gram"})

    @property
    def steps_planned(self) -> int:
        """Turns."""
        return self.iterations

    def check(self, task: LayerTask) -> None:
        """Refuse a task without a Gram matrix, or more bits than a codebook is fitted for.

        Raises:
            QuantizationError: see above.
        """
        super().check(task)
        check_codebook_bits(task)

    def _rounding(self) -> GPTQ:
        """Return the method that finds codes."""
        return GPTQ(
            damp=self.damp, act_order=self.act_order, static_groups=True, refine=self.refine, rescale=self.rescale
        )

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        assert task.statistics is not None and task.statistics.gram is not None
        rounding = self._rounding()
        factors = rounding.factors(task)
        rule = AbsMax() if isinstance(task.scale, BestClip) else task.scale
        scales = find_scales(as_matrix(task.weight), CodebookGrid(), task.granularity, rule)
        first = fit_codebook(
            task, scales, Importance.of(replace(task, statistics=replace(task.statistics, fisher=None))), task.grid.bits
        )
        grid, scale = first.grid, first.scales.scale
        recorder = Recorder(run, task.name, self.iterations)
        quiet = Run(run.seed, run.device)
        pushed = [part @ gram for part, gram in _slices(task, task.weight.astype(np.float64))]
        best: tuple[float, QuantizedTensor] | None = None
        for step in range(self.iterations):
            here = replace(task, grid=grid, search=False, scale=GivenScale(scale))
            found, _, _ = rounding.round_on(here, grid, factors, quiet, lambda fraction: None)
            error = task.error_of(found)
            if step == 0:
                recorder.record(0, error)
            fitted = _with_levels(found, best_levels(task, found, pushed))
            after = task.error_of(fitted)
            error, found = (after, fitted) if after < error else (error, found)
            if best is None or error < best[0]:
                best = (error, found)
            recorder.record(step + 1, error)
            if found.grid == grid and np.array_equal(found.scale, scale):
                break  # the levels answer their own codes: every further turn would be this one
            assert isinstance(found.grid, CodebookGrid)
            grid, scale = found.grid, found.scale
        assert best is not None
        return Outcome(best[1], recorder.trace(), notes=tuple(rounding.notes_on(factors)))


def _slices(task: LayerTask, matrix: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of each group of a convolution (all rows otherwise) with their Gram matrix, float64."""
    assert task.statistics is not None and task.statistics.gram is not None
    grams = np.asarray(task.statistics.gram, dtype=np.float64)
    return list(zip(np.split(matrix, len(grams)), grams, strict=True))


def best_levels(
    task: LayerTask, found: QuantizedTensor, pushed: list[Float[np.ndarray, "rows depth"]]
) -> Float[np.ndarray, " levels"]:
    """Return the levels with the smallest output error for the codes and scales of a quantized weight.

    With B_c the scales where the code is c and 0 elsewhere, the normal equations are sum_c' <B_c G, B_c'> T_c' = <W G, B_c>.
    Levels that no weight takes stay where they are.

    Args:
        task: the layer.
        found: on a codebook; its codes are level indices.
        pushed: W G of each slice of rows.
    """
    levels = np.array(found.grid.levels)
    rows, depth = task.weight.shape
    group_of = np.arange(depth) // found.group_size
    scale = np.broadcast_to(found.scale, (rows, found.scale.shape[1])).astype(np.float64)[:, group_of]
    count = len(levels)
    left, right = np.zeros((count, count)), np.zeros(count)
    for number, (codes, gram) in enumerate(_slices(task, found.codes)):
        part = scale[number * len(codes) : (number + 1) * len(codes)]
        flat = codes.ravel().astype(np.int64)
        right += np.bincount(flat, (pushed[number] * part).ravel(), count)
        for code in range(count):
            basis = np.where(codes == code, part, 0.0)
            left[code] += np.bincount(flat, ((basis @ gram) * part).ravel(), count)
    used = np.diagonal(left) > 0.0
    if not used.any():
        return levels
    free = np.ix_(used, used)
    rest = right[used] - left[np.ix_(used, ~used)] @ levels[~used]
    levels[used] = np.linalg.lstsq((left[free] + left[free].T) / 2.0, rest, rcond=1e-12)[0]
    return levels


def _with_levels(found: QuantizedTensor, levels: Float[np.ndarray, " levels"]) -> QuantizedTensor:
    """Return the quantized weight with other levels for its codes; one factor of all scales keeps them within [-1, 1]."""
    reach = float(np.abs(levels).max())
    if not np.isfinite(levels).all() or len(np.unique(levels)) < len(levels) or reach == 0.0:
        return found
    reach = max(reach, 1.0)
    order = np.argsort(levels)
    place = np.empty(len(order), dtype=found.codes.dtype)
    place[order] = np.arange(len(order))
    grid = CodebookGrid(tuple((levels[order] / reach).tolist()))
    return replace(found, codes=place[found.codes], scale=(found.scale * np.float32(reach)), grid=grid)

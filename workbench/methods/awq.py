"""AWQ: scales of input channels folded into what comes before, clips searched on real inputs, then round to nearest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from workbench.calibration.statistics import InputGap, LayerStatistics
from workbench.errors import QuantizationError
from workbench.methods.method import Method, Need, Outcome, Scope, register
from workbench.methods.result import LayerResult
from workbench.methods.run import Run
from workbench.methods.task import BlockTask, LayerTask
from workbench.methods.transforms.activation_aware import AwqScales, Fold
from workbench.methods.transforms.layer_axes import rows_of
from workbench.quantization.quantize import QuantizedTensor, quantize
from workbench.quantization.scales import GivenScale

if TYPE_CHECKING:
    import torch

#: Layers whose clips are not searched: their outputs meet in a product, where the error of one alone says little.
_UNCLIPPED = {"q_proj", "k_proj", "query", "key", "qkv_proj", "c_attn", "query_key_value", "qkv", "Wqkv"}

_NO_BLOCK = "the layer stood alone: AWQ's scales need a block to fold into, so only the clip was searched"


@register
@dataclass(frozen=True)
class Awq(Method):
    """Scale channels by their inputs' magnitude, clip each group where its output errs least, round to nearest.

    On a block the scales are searched and folded first (``transforms.activation_aware.AwqScales``): afterwards the block's
    module holds the scaled weights and norms, and the results are codes of the scaled weights. On a single layer there is
    nothing to fold into, and only the clip is searched. Clips of queries and keys are left alone on blocks, as in the
    authors' code.

    Source: Lin et al. 2023, AWQ (arXiv 2306.00978), section 3.2; the search of the clip (ten of ``clip_points`` = 20 steps
    down to half of the scale) from the authors' code. Here a clip is compared by E[x x^T] over all rows, and one that makes a
    layer's whole output worse (groups are searched one by one) is given up.

    Args:
        points: values of alpha that are tried for the scales.
        rows: input vectors on which they are compared.
        clip: whether clips are searched.
        clip_points: steps per unit of the clip; the lower half is not tried.

    Raises:
        QuantizationError: no points, rows or clips.
    """

    word: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    summary: ClassVar[str] = "scales channels by their inputs' magnitude, clips on real inputs, rounds to nearest"

    points: int = 20
    rows: int = 2048
    clip: bool = True
    clip_points: int = 20

    def __post_init__(self) -> None:
        AwqScales(self.points, self.rows)  # checks both
        if self.clip_points < 2:
            message = f"AWQ needs at least two steps of the clip, not {self.clip_points}"
            raise QuantizationError(message)

    @property
    def needs(self) -> frozenset[Need]:
        """The Gram matrix of the inputs."""
        return frozenset({"gram"})

    @property
    def scope(self) -> Scope:
        """Blocks: scales are folded into neighbours."""
        return "block"

    def quantize_block(self, task: BlockTask, run: Run | None = None) -> dict[str, LayerResult]:
        """Scale the block's channels in place, then clip and round each of its layers.

        Raises:
            QuantizationError: a layer was calibrated without a Gram matrix, or the block has no inputs. (Layers that no input
                reached, such as an expert nobody asked for, are rounded to nearest, with a note.)
            Cancelled: a listener stopped it.
        """
        run = run or Run()
        for layer in task.layers.values():
            if layer.statistics is not None:
                self.check(layer)
        started = time.monotonic()
        folds, notes = AwqScales(self.points, self.rows).search_and_fold(task, run)
        share = (time.monotonic() - started) / max(len(task.layers), 1)
        results: dict[str, LayerResult] = {}
        for name, layer in folded_tasks(task, folds).items():
            before = time.monotonic()
            word = task.places.get(name, name).rpartition(".")[2]
            quantized, more = self._clip(layer, run, search=self.clip and word not in _UNCLIPPED)
            plain = task.layers[name]
            found = layer.result(
                self,
                quantized,
                seconds=share + time.monotonic() - before,
                bias=None if layer.bias is plain.bias else layer.bias,
                notes=(*notes, *more),
            )
            # what all methods are measured against is the rounding of the weights as they were
            results[name] = replace(found, start_error=plain.error_of(plain.start))
            run.progress(len(results) / len(task.layers), name)
        return results

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        quantized, notes = self._clip(task, run, search=self.clip)
        return Outcome(quantized, notes=(_NO_BLOCK, *notes))

    def _clip(self, task: LayerTask, run: Run, *, search: bool) -> tuple[QuantizedTensor, tuple[str, ...]]:
        start = task.start
        if not search:
            return start, ()
        if task.statistics is None:
            return start, ("no input reached this layer: it is rounded to nearest",)
        if start.grid.fitted or start.tensor_scale is not None or isinstance(task.scale, GivenScale):
            return start, (f"no clip was searched: the scales of {start.grid} are not free",)
        steps = np.arange(self.clip_points // 2) / self.clip_points
        found = best_output_clips(task, tuple(1.0 - steps), run.device)
        if task.error_of(found) > task.error_of(start):
            return start, ("the clips that suit each group alone made the whole output worse and were given up",)
        return found, ()


def best_output_clips(task: LayerTask, clips: Sequence[float], device: str = "cpu") -> QuantizedTensor:
    """Return the weight rounded with, for each scale, the clip whose group errs least at the output on its own inputs.

    A group's error is ``d^T E[x x^T] d`` over its columns, d its rounding error; of equal ones the larger clip wins.

    Args:
        task: with a Gram matrix.
        clips: fractions of the task's own scales, largest first.
        device: torch device of the products.
    """
    grid = task.start_grid
    errors, scales, offsets = [], [], []
    for clip in clips:
        rounded = quantize(task.weight, grid, task.granularity, task.scale, clip)
        errors.append(_group_errors(task, rounded, device))
        scales.append(rounded.scale)
        offsets.append(rounded.offset)
    best = np.argmin(np.stack(errors), axis=0)[None]
    scale, offset = (np.take_along_axis(np.stack(each), best, axis=0)[0] for each in (scales, offsets))
    found = quantize(
        task.weight, grid, task.granularity, GivenScale(scale, offset), scale_format=task.start.scale_format
    )
    return replace(found, shape=task.shape, name=task.name, clip=np.asarray(clips, dtype=np.float64)[best[0]])


def _group_errors(task: LayerTask, rounded: QuantizedTensor, device: str) -> Float[np.ndarray, "rows groups"]:
    """Return the output error of each scale's weights alone, in the shape of the scales."""
    import torch

    statistics = task.statistics
    assert statistics is not None and statistics.gram is not None
    gap = torch.from_numpy(task.weight - rounded.dequantize().reshape(task.weight.shape)).to(device)
    size = rounded.group_size
    parts = []
    for number, rows in enumerate(gap.chunk(statistics.groups)):
        gram = torch.as_tensor(statistics.gram[number], dtype=torch.float32).to(device)
        columns = []
        for first in range(0, gap.shape[1], size):
            inside = rows[:, first : first + size]
            square = gram[first : first + size, first : first + size]
            columns.append(((inside @ square) * inside).sum(dim=1))
        parts.append(torch.stack(columns, dim=1))
    errors = torch.cat(parts).cpu().numpy().astype(np.float64)
    return errors.sum(axis=0, keepdims=True) if len(rounded.scale) == 1 else errors


def folded_tasks(block: BlockTask, folds: Sequence[Fold]) -> dict[str, LayerTask]:
    """Return a block's layer tasks as they are after folds were made in its module: weights, biases and statistics.

    Exact: inputs that were divided by s have a Gram matrix divided by s s^T.

    Args:
        block: whose module holds the folded weights and whose tasks are those from before.
        folds: what was folded, in order.
    """
    reads: dict[str, torch.Tensor] = {}
    makes: dict[str, torch.Tensor] = {}
    for made in folds:
        for path in made.pair.consumers:
            reads[path] = made.factors
        if made.pair.kind != "norm":
            outputs = len(rows_of(block.module.get_submodule(made.pair.producer)))
            first, last = made.pair.rows or (0, outputs)
            factors = makes.setdefault(made.pair.producer, made.factors.new_ones(outputs))
            factors[first:last] *= made.factors
    found: dict[str, LayerTask] = {}
    taken: dict[str, int] = {}
    for name, task in block.layers.items():
        path = block.places.get(name, name)
        first = taken.get(path, 0)
        last = taken[path] = first + len(task.weight)
        if path not in reads and path not in makes:
            found[name] = task
            continue
        layer = block.module.get_submodule(path)
        weight = rows_of(layer)[first:last].detach().float().cpu().numpy()
        bias, statistics = task.bias, task.statistics
        if statistics is not None and path in reads:
            statistics = divided_inputs(statistics, reads[path].cpu().numpy())
        if path in makes:
            factors = makes[path][first:last].cpu().numpy()
            bias = None if bias is None else (bias / factors).astype(np.float32)
            if statistics is not None and statistics.fisher is not None:
                statistics = replace(statistics, fisher=statistics.fisher * factors.astype(np.float64) ** 2)
        found[name] = replace(task, weight=np.ascontiguousarray(weight), bias=bias, statistics=statistics)
    return found


def divided_inputs(statistics: LayerStatistics, factors: Float[np.ndarray, " depth"]) -> LayerStatistics:
    """Return the statistics of a layer's inputs after each channel was divided by its factor.

    Args:
        statistics: of a layer whose groups all read as many channels (1 group).
        factors: positive, one for each input.
    """
    s = np.asarray(factors, dtype=np.float64)[None]
    single = s.astype(np.float32)[:, None]
    pairs = s[:, :, None] * s[:, None, :]
    gram, gap = statistics.gram, statistics.gap
    return replace(
        statistics,
        second=statistics.second / s**2,
        mean=statistics.mean / s,
        mean_magnitude=statistics.mean_magnitude / s,
        absmax=statistics.absmax / s,
        gram=None if gram is None else (gram / pairs).astype(gram.dtype),
        inputs=None if statistics.inputs is None else statistics.inputs / single,
        float_inputs=None if statistics.float_inputs is None else statistics.float_inputs / single,
        gap=None if gap is None else InputGap(gap.across / pairs, gap.among / pairs, gap.mean / s),
    )

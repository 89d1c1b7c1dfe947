"""AWQ's scales: input channels that matter are enlarged before rounding, by how large their inputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from workbench.errors import QuantizationError
from workbench.methods.run import Run
from workbench.methods.task import BlockTask, LayerTask
from workbench.methods.transforms.channels import PartCalls, record_calls, watch_channels
from workbench.methods.transforms.layer_axes import rows_of
from workbench.methods.transforms.pairs import FoldablePair, fold, foldable_pairs
from workbench.methods.transforms.transform import Transform, register
from workbench.methods.transforms.verified import change_if_equal, output_of
from workbench.quantization.quantize import quantize

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Fold:
    """A fold that was made: the pair and the factor of each channel."""

    pair: FoldablePair
    factors: torch.Tensor


@register
@dataclass(frozen=True)
class AwqScales(Transform):
    """Multiply each input channel's weights by ``s = mean|x|^alpha``, and divide what comes before by it.

    The factors are divided by ``sqrt(max(s) min(s))``, and alpha is the one of ``points`` values 0, 1/points, ... whose
    rounding to nearest moves the output of the part that reads the channels (attention, feed-forward) least, under each
    layer's own grid, granularity and scale rule. Alpha 0 is no scaling, so the choice is never worse than that on what was
    searched. Values that several heads share are left alone, as in the authors' code; so is what a GELU separates.

    Source: Lin et al. 2023, AWQ (arXiv 2306.00978), eq. 4 and 5; normalisation, order of the pairs and the skipped values
    from the authors' code.

    Args:
        points: how many values of alpha are tried.
        rows: input vectors on which they are compared.

    Raises:
        QuantizationError: fewer than one point or row.
    """

    word: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ scales"
    summary: ClassVar[str] = "enlarges the weights of channels with large inputs, folded into what comes before"

    points: int = 20
    rows: int = 2048

    def __post_init__(self) -> None:
        if self.points < 1 or self.rows < 1:
            message = "AWQ tries at least one alpha on at least one row"
            raise QuantizationError(message)

    def apply(self, block: BlockTask, run: Run | None = None) -> tuple[str, ...]:
        """Search and fold the scales of every pair of the block; see ``Transform.apply``."""
        return self.search_and_fold(block, run)[1]

    def search_and_fold(self, block: BlockTask, run: Run | None = None) -> tuple[list[Fold], tuple[str, ...]]:
        """Do what ``apply`` does, and return the folds as well, in the order in which they were made."""
        run = run or Run()
        pairs = foldable_pairs(block.module)
        notes = [
            f"{pair.repeats} heads share the values of {pair.producer}: they were not scaled"
            for pair in pairs
            if pair.repeats > 1
        ]
        tasks = {pair: found for pair in pairs if pair.repeats == 1 and (found := _tasks_of(block, pair)) is not None}
        pairs = list(tasks)
        if not pairs:
            return [], (*notes, f"nothing in {block.name} can take AWQ's scales")
        seen = watch_channels(block, [pair.consumers[0] for pair in pairs])
        folds: list[Fold] = []
        for number, pair in enumerate(pairs):
            run.progress(number / len(pairs), f"{block.name}: AWQ scales of {pair}")
            magnitude = seen[pair.consumers[0]].mean_magnitude
            alpha, factors = self._best(block, pair, tasks[pair], magnitude)
            if alpha == 0.0:
                continue
            note = change_if_equal(block, f"scaling {pair}", partial(fold, block.module, pair, factors))
            if note:
                notes.append(note)
            else:
                folds.append(Fold(pair, factors))
        return folds, tuple(notes)

    def _best(
        self, block: BlockTask, pair: FoldablePair, tasks: Mapping[str, Sequence[LayerTask]], magnitude: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """Return the alpha whose quantized part errs least, and its factors."""
        import torch

        part = record_calls(block, _common_part(pair.consumers), self.rows)
        truth = [output_of(part.part, call) for call in part.calls]
        layers = {path: block.module.get_submodule(path) for path in pair.consumers}
        kept = {path: rows_of(layer).clone() for path, layer in layers.items()}
        best = (float("inf"), 0.0, torch.ones_like(magnitude))
        try:
            for number in range(self.points):
                alpha = number / self.points
                factors = awq_factors(magnitude, alpha)
                for path, layer in layers.items():
                    scaled = kept[path] * factors
                    rows_of(layer)[:] = rounded(scaled, tasks[path]) / factors
                error = _distance(part, truth)
                for path, layer in layers.items():
                    rows_of(layer)[:] = kept[path]
                if error < best[0]:
                    best = error, alpha, factors
        finally:
            for path, layer in layers.items():
                rows_of(layer)[:] = kept[path]
        return best[1], best[2]


def awq_factors(magnitude: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return ``mean|x|^alpha`` over ``sqrt(max min)`` of itself; channels without inputs count as 1e-4 (the authors' floor).

    >>> import torch
    >>> awq_factors(torch.tensor([1.0, 4.0]), 0.5)
    tensor([0.7071, 1.4142])
    """
    factors = (magnitude**alpha).clamp_min(1e-4)
    return factors / (factors.max() * factors.min()).sqrt()


def rounded(weight: torch.Tensor, tasks: Sequence[LayerTask]) -> torch.Tensor:
    """Return a weight (outputs, inputs) rounded to nearest as its tasks say; several tasks share the rows in order."""
    import torch

    values = weight.detach().float().cpu().numpy()
    parts, first = [], 0
    for task in tasks:
        last = first + len(task.weight)
        found = quantize(np.ascontiguousarray(values[first:last]), task.start_grid, task.granularity, task.scale)
        parts.append(found.dequantize())
        first = last
    return torch.from_numpy(np.concatenate(parts)).to(weight)


def _distance(part: PartCalls, truth: Sequence[torch.Tensor]) -> float:
    total = 0.0
    for call, true in zip(part.calls, truth, strict=True):
        gap = output_of(part.part, call) - true
        total += float(gap.double().pow(2).sum()) if gap.device.type != "mps" else float(gap.pow(2).sum())
    return total


def _tasks_of(block: BlockTask, pair: FoldablePair) -> dict[str, list[LayerTask]] | None:
    """Return the tasks that together are each consumer's rows, in order; None where one is not quantized whole."""
    found: dict[str, list[LayerTask]] = {}
    for path in pair.consumers:
        tasks = [block.layers[name] for name, place in block.places.items() if place == path and name in block.layers]
        outputs, inputs = rows_of(block.module.get_submodule(path)).shape
        if sum(len(task.weight) for task in tasks) != outputs or any(t.weight.shape[1] != inputs for t in tasks):
            return None
        if any(task.grid.fitted for task in tasks):
            return None
        found[path] = tasks
    return found


def _common_part(paths: Sequence[str]) -> str:
    """Return the path of the smallest part that holds several layers; of one layer the layer itself."""
    if len(paths) == 1:
        return paths[0]
    shared: list[str] = []
    for words in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ".".join(shared)

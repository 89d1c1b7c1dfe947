"""Where learning starts: round to nearest at the best of a few scales and, on power grids, exponents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.methods.task import LayerTask
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.scales import BestClip, GivenScale

#: Exponents that are tried with the best clip of each group; 1 is the uniform grid.
EXPONENTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def best_start(
    task: LayerTask, loss: Callable[[QuantizedTensor], float], *, exponents: bool, search: bool = True
) -> QuantizedTensor:
    """Return the start with the smallest loss.

    Tried are the task's own start (its scale rule), the best clip of each group, and on a power grid whose exponent is
    free the best clip of each group at several exponents, 1 among them: so a power grid never starts worse than the best
    clipped uniform grid of as many codes. Of equals the task's own start wins.

    Args:
        task: the layer.
        loss: of a quantized weight.
        exponents: whether the exponent is free.
        search: False for the task's own start.

    Raises:
        QuantizationError: the grid is fitted to each group (binary coding), so that it has no levels to choose from.
    """
    if task.grid.fitted:
        message = f"{task.grid} fits its levels to each group of weights; learning codes takes a grid with given levels"
        raise QuantizationError(message)
    best = task.start
    if not search:
        return best
    least = loss(best)
    if least <= 0.0:
        return best
    for found in _candidates(task, exponents=exponents):
        value = loss(found)
        if value < least * (1.0 - 1e-6):
            best, least = found, value
    return best


def _candidates(task: LayerTask, *, exponents: bool) -> Iterator[QuantizedTensor]:
    grid = task.start_grid
    if isinstance(task.scale, GivenScale):
        return  # scales that somebody chose are kept
    if not isinstance(task.scale, BestClip):
        yield task.round_to_nearest(scale=BestClip())
    if not (exponents and isinstance(grid, PowerGrid)):
        return
    for exponent in np.unique([*EXPONENTS, round(grid.exponent, 4)]):
        yield _nearest(task, replace(grid, exponent=float(exponent)))


def _nearest(task: LayerTask, grid: PowerGrid) -> QuantizedTensor:
    """Round to the nearest level with the best clip; the codes are kept under the grid's own rounding rule."""
    found = task.round_to_nearest(replace(grid, rounding="nearest"), BestClip())
    return replace(found, grid=grid)

"""Level indices and scales of a task's weight, put together into the quantized tensor that a method returns."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from workbench.grids.grid import Grid
from workbench.methods.task import LayerTask
from workbench.quantization.quantize import QuantizedTensor, code_dtype
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.scales import Scales


def tensor_of(task: LayerTask, grid: Grid, indices: Int[np.ndarray, "rows depth"], scales: Scales) -> QuantizedTensor:
    """Return the quantized tensor that level indices and scales make."""
    return QuantizedTensor(
        codes=grid.codes.astype(code_dtype(grid))[indices],
        scale=scales.scale,
        offset=scales.offset,
        grid=grid,
        granularity=task.granularity,
        shape=task.shape,
        name=task.name,
        scale_format=check_scale_format(None, grid),
        tensor_scale=scales.tensor_scale,
        clip=scales.clip,
    )


def indices_under(task: LayerTask, grid: Grid, scales: Scales) -> Int[np.ndarray, "rows depth"]:
    """Return the level index that the grid's own rounding gives each weight under some scales."""
    from workbench.kernels.encode import encode_rows

    size = task.granularity.group_size(task.weight.shape[1])
    return encode_rows(task.weight, grid, scales.scale, scales.offset, size)


def round_under(task: LayerTask, grid: Grid, scales: Scales) -> QuantizedTensor:
    """Return the weight rounded by the grid's own rule under some scales."""
    return tensor_of(task, grid, indices_under(task, grid, scales), scales)

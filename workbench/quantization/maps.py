"""A weight matrix as a picture of any size that loses no outlier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.quantization.sketch import Progress
from workbench.quantization.sketching import step_bytes
from workbench.quantization.source import as_matrix


@dataclass(frozen=True, repr=False, eq=False)
class WeightMap:
    """A downsampled weight matrix."""

    values: Float[np.ndarray, "height width"]
    """float32: the weight of largest magnitude in each cell, with its sign."""
    rows: int
    """Rows of the whole matrix."""
    columns: int
    """Columns of the whole matrix."""

    def cell(self, row: int, column: int) -> tuple[range, range]:
        """Return the rows and columns of the matrix that a cell of the picture stands for."""
        height, width = self.values.shape
        return _span(row, height, self.rows), _span(column, width, self.columns)

    def __repr__(self) -> str:
        height, width = self.values.shape
        return f"WeightMap({height}x{width} of {self.rows}x{self.columns}, absmax {np.abs(self.values).max():.4g})"


def weight_map(layer: Any, height: int = 256, width: int = 256, progress: Progress | None = None) -> WeightMap:
    """Shrink a weight matrix to at most height x width cells; each keeps its weight of largest magnitude.

    Row r belongs to line floor(r * height / rows), columns likewise, so that cells differ in size by at most one.

    Args:
        layer: a ``Layer``, an array or a tensor.
        height: lines of the picture; at most the matrix' rows are used.
        width: cells of a line; at most the matrix' columns are used.
        progress: called with the finished fraction; may raise ``Cancelled``.

    Raises:
        QuantizationError: a size below 1, or an empty weight.
    """
    from workbench.kernels.moments import shrink_rows

    if height < 1 or width < 1:
        message = f"a weight map has at least 1 x 1 cells, not {height} x {width}"
        raise QuantizationError(message)
    matrix = as_matrix(layer)
    rows, columns = matrix.weights.shape
    picture = np.zeros((min(height, rows), min(width, columns)), dtype=np.float32)
    for start, block in matrix.weights.blocks(step_bytes(matrix)):
        shrink_rows(block, start, rows, picture)
        if progress is not None:
            progress((start + len(block)) / rows)
    return WeightMap(picture, rows, columns)


def _span(index: int, cells: int, length: int) -> range:
    """Return what one of ``cells`` equal parts of ``length`` things holds."""
    return range(-(-index * length // cells), -(-(index + 1) * length // cells))

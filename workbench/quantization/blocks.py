"""Walk a matrix in blocks of rows, and give each block its scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.checkpoints.layer import Weights


def row_blocks(weights: Weights, *, most: int = 1 << 20) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) with at most ``most`` weights each (but at least one row).

    Small enough that the float64 temporaries of one block stay in the tens of megabytes, whatever the layer's size.
    """
    return weights.blocks(max_bytes=most * weights.dtype.itemsize)


def rows_of(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the scales (or offsets) of rows ``start`` to ``stop``: all of them when one scale serves all rows."""
    return array if array.shape[0] == 1 else array[start:stop]


def spread(per_group: np.ndarray, columns: int, group_size: int) -> np.ndarray:
    """Repeat each group's value over its columns, ready to broadcast against (rows, columns).

    >>> spread(np.array([[1.0, 2.0]]), columns=5, group_size=3)
    array([[1., 1., 1., 2., 2.]])
    """
    if per_group.shape[1] == 1:
        return per_group
    return np.repeat(per_group, group_size, axis=1)[:, :columns]

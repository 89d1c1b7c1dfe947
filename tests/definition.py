"""The definition of encoding and decoding in plain float64 numpy: the oracle of every compiled pass.

    encode: u = w / s + o,  index = searchsorted(thresholds, u, side="right")
    decode: w_hat = float32(s * (levels[index] - o))

A group whose scale is 0 (all its weights are zero, or vanish in the scale's format) decodes to zeros.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from workbench.grids import Grid
from workbench.quantization.blocks import spread


def encode_block(
    block: np.ndarray,
    grid: Grid,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    group_size: int,
) -> Int[np.ndarray, "rows columns"]:
    """Return the index of the level that each weight encodes to.

    Args:
        block: finite weights (rows, columns), any float dtype.
        grid: levels and thresholds.
        scale: float32, one value for each row and group; 1 row where one scale serves all.
        offset: float64, same shape; zeros unless the grid is a ``range`` grid.
        group_size: columns that share a scale.

    >>> from workbench.grids import UniformGrid
    >>> weight = np.array([[0.7, -0.2, 0.0]])
    >>> encode_block(weight, UniformGrid(bits=4), np.array([[0.7]]), np.zeros((1, 1)), group_size=3)
    array([[14,  5,  7]])
    """
    columns = block.shape[1]
    s = spread(np.asarray(scale, dtype=np.float64), columns, group_size)
    o = spread(np.asarray(offset, dtype=np.float64), columns, group_size)
    dead = s == 0.0
    u = block.astype(np.float64)
    u /= np.where(dead, 1.0, s)
    if np.any(o):
        u += o
    index = np.searchsorted(grid.thresholds, u, side="right")
    if dead.any():
        index[np.broadcast_to(dead, index.shape)] = nearest_zero(grid)
    return index


def decode_block(
    index: Int[np.ndarray, "rows columns"],
    grid: Grid,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    group_size: int,
) -> Float[np.ndarray, "rows columns"]:
    """Return the float32 weights that level indices stand for (arguments as in ``encode_block``).

    >>> from workbench.grids import UniformGrid
    >>> decode_block(np.array([[14, 5, 7]]), UniformGrid(bits=4), np.array([[7.0]]), np.zeros((1, 1)), group_size=3)
    array([[ 7., -2.,  0.]], dtype=float32)
    """
    columns = index.shape[1]
    value = grid.levels[index]
    if np.any(offset):
        value -= spread(np.asarray(offset, dtype=np.float64), columns, group_size)
    value *= spread(np.asarray(scale, dtype=np.float64), columns, group_size)
    return value.astype(np.float32)


def nearest_zero(grid: Grid) -> int:
    """Return the index of the level nearest 0."""
    return int(np.argmin(np.abs(grid.levels)))

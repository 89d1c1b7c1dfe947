"""Cyclic descent on tr((W - W_hat) G (W - W_hat)^T): codes one by one, then scales group by group. Derived here.

GPTQ rounds each weight once, in one order. Given all other codes the best level of a weight is the one nearest to
w_hat + ((W - W_hat) G)_j / G_jj, and given all codes the best scale of a group is a quotient of two sums. Taking these
steps in turn lowers the error of the layer's outputs until nothing moves; none of them can raise it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from workbench.grids.grid import Grid


@dataclass(eq=False)
class Coded:
    """Rows that share their inputs, as level indices with scales."""

    indices: Int[np.ndarray, "rows depth"]
    """Level index of each weight."""
    scale: Float[np.ndarray, "rows groups"]
    """float32; one row where all rows share it."""
    offset: Float[np.ndarray, "rows groups"]
    """float64, same shape."""
    group_of: Int[np.ndarray, " depth"]
    """int32, the scale group of each column."""

    def decoded(self, grid: Grid) -> Float[np.ndarray, "rows depth"]:
        """Return the weights that the codes stand for: float64 holding the float32 numbers that decoding gives."""
        scale = self.scale.astype(np.float64)[:, self.group_of]
        return (scale * self.unscaled(grid)).astype(np.float32).astype(np.float64)

    def unscaled(self, grid: Grid) -> Float[np.ndarray, "rows depth"]:
        """Return level - offset of each weight."""
        return grid.levels[self.indices] - self.offset[:, self.group_of]

    def take_rows(self, other: Coded, rows: np.ndarray) -> None:
        """Take some rows (a mask) of another coding on the same grid."""
        self.indices[rows] = other.indices[rows]
        if len(self.scale) > 1:
            self.scale[rows] = other.scale[rows]
            self.offset[rows] = other.offset[rows]


def row_errors(
    weight: Float[np.ndarray, "rows depth"], decoded: Float[np.ndarray, "rows depth"], gram: np.ndarray
) -> Float[np.ndarray, " rows"]:
    """Return (w - w_hat)^T G (w - w_hat) of each row, float64."""
    gap = weight.astype(np.float64) - decoded
    return np.maximum(((gap @ gram) * gap).sum(axis=1), 0.0)


def descend_codes(
    weight: Float[np.ndarray, "rows depth"],
    coded: Coded,
    gram: Float[np.ndarray, "depth depth"],
    grid: Grid,
    *,
    sweeps: int,
    rescale: bool,
    tell: Callable[[int, float], None],
) -> int:
    """Move codes (and scales) while the output error falls, in place; returns how many sweeps were made.

    Args:
        weight: the true weights.
        coded: where to start.
        gram: float64, E[x x^T].
        grid: with thresholds midway between its levels.
        sweeps: at most this many passes over all columns.
        rescale: whether every sweep ends with the best scale of each group (one row of scales for each row of weights).
        tell: told the sweep and the mean error of a row after it; may raise ``Cancelled``.
    """
    from workbench.kernels.gptq import descend

    gram = np.ascontiguousarray(gram, dtype=np.float64)
    truth = weight.astype(np.float64)
    for sweep in range(1, sweeps + 1):
        decoded = coded.decoded(grid)
        gradient = (truth - decoded) @ gram
        moved = descend(decoded, gradient, gram, coded.group_of, coded.scale, coded.offset, grid, coded.indices)
        changed = rescale and best_scales(truth, coded, gram, grid)
        tell(sweep, float(row_errors(truth, coded.decoded(grid), gram).mean()))
        if not moved and not changed:
            return sweep
    return sweeps


def best_scales(truth: np.ndarray, coded: Coded, gram: np.ndarray, grid: Grid) -> bool:
    """Give each group of each row the scale with the smallest output error beside the others; in place.

    With b = level - offset on the group and 0 elsewhere, the best change of the scale is ((w - w_hat) G b) / (b G b). A row
    whose error does not fall (float32 rounds the scale) keeps what it had. Returns whether any scale moved.
    """
    basis = coded.unscaled(grid)
    gap = truth - coded.decoded(grid)
    slope = gap @ gram
    before = np.maximum((slope * gap).sum(axis=1), 0.0)
    scale = coded.scale.astype(np.float64)
    edges = np.flatnonzero(np.diff(coded.group_of, prepend=-1))
    for number, (start, stop) in enumerate(zip(edges, [*edges[1:], len(coded.group_of)], strict=True)):
        part = basis[:, start:stop]
        pushed = part @ gram[start:stop]
        below = (pushed[:, start:stop] * part).sum(axis=1)
        above = (slope[:, start:stop] * part).sum(axis=1)
        step = np.divide(above, below, out=np.zeros_like(above), where=below > 1e-30)
        # A scale neither vanishes nor changes its sign: its codes would then mean something else.
        step = np.where((scale[:, number] + step) * scale[:, number] > 0.0, step, 0.0)
        scale[:, number] += step
        slope -= step[:, None] * pushed
    trial = Coded(coded.indices, scale.astype(np.float32), coded.offset, coded.group_of)
    better = row_errors(truth, trial.decoded(grid), gram) < before * (1.0 - 1e-9)
    coded.scale[better] = trial.scale[better]
    return bool(better.any())

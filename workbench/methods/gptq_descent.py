"""Cyclic descent on tr((W - W_hat) G (W - W_hat)^T): codes one by one, then scales group by group. Derived here.

GPTQ rounds each weight once, in one order. Given all other codes the best level of a weight is the one nearest to
w_hat + ((W - W_hat) G)_j / G_jj, and given all codes the best scale of a group is a quotient of two sums. Taking these
steps in turn lowers the error of the layer's outputs until nothing moves; none of them can raise it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

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
) -> None:
    """Move codes (and scales) while the output error falls, in place.

    Args:
        weight: the true weights.
        coded: where to start.
        gram: float64, what errors are measured under.
        grid: with thresholds midway between its levels.
        sweeps: at most this many passes over all columns.
        rescale: whether every sweep ends with the best scale of each group (one row of scales for each row of weights).
        tell: told the sweep (0 is the start) and the mean error of a row after it; may raise ``Cancelled``.
    """
    from workbench.kernels.gptq import descend

    gram = np.ascontiguousarray(gram, dtype=np.float64)
    truth = weight.astype(np.float64)
    decoded = coded.decoded(grid)
    slope = (truth - decoded) @ gram  # both are kept up to date: the product is the dear part
    for sweep in range(sweeps + 1):
        moved, changed = 0, False
        if sweep:
            moved = descend(decoded, slope, gram, coded.group_of, coded.scale, coded.offset, grid, coded.indices)
            changed = rescale and best_scales(truth, coded, gram, grid, decoded, slope)
        tell(sweep, max(float((slope * (truth - decoded)).sum()), 0.0) / len(truth))
        if sweep and not moved and not changed:
            return


def best_scales(  # noqa: PLR0917
    truth: np.ndarray, coded: Coded, gram: np.ndarray, grid: Grid, decoded: np.ndarray, slope: np.ndarray
) -> bool:
    """Give each group of each row the scale with the smallest output error beside the others; all in place.

    With b = level - offset on the group and 0 elsewhere, the best change of the scale is ((w - w_hat) G b) / (b G b). A row
    whose error does not fall (float32 rounds the scale) keeps what it had. Returns whether any scale moved.
    """
    basis = coded.unscaled(grid)
    before = (slope * (truth - decoded)).sum(axis=1)
    moving = slope.copy()
    scale = coded.scale.astype(np.float64)
    edges = np.flatnonzero(np.diff(coded.group_of, prepend=-1))
    for number, (start, stop) in enumerate(pairwise([*edges, len(coded.group_of)])):
        part = basis[:, start:stop]
        pushed = part @ gram[start:stop]
        below = (pushed[:, start:stop] * part).sum(axis=1)
        above = (moving[:, start:stop] * part).sum(axis=1)
        step = np.divide(above, below, out=np.zeros_like(above), where=below > 1e-30)
        # A scale neither vanishes nor changes its sign: its codes would then mean something else.
        step = np.where((scale[:, number] + step) * scale[:, number] > 0.0, step, 0.0)
        scale[:, number] += step
        moving -= step[:, None] * pushed
    trial = Coded(coded.indices, scale.astype(np.float32), coded.offset, coded.group_of)
    there = trial.decoded(grid)
    gap = truth - there
    after = gap @ gram
    better = (after * gap).sum(axis=1) < before * (1.0 - 1e-9)
    coded.scale[better] = trial.scale[better]
    decoded[better], slope[better] = there[better], after[better]
    return bool(better.any())

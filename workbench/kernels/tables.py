"""Finding a level among many: a table over the leading bits of float32(u), then a comparison or two."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from workbench.grids.grid import Grid
from workbench.kernels.codes import bits_of
from workbench.kernels.runtime import kernel

#: A table is never longer than this; grids that would need more compare a few times instead.
_LONGEST = 1 << 17


class CodeTable(NamedTuple):
    """Where ``u`` falls among a grid's thresholds: start at ``first[cell(u)]``, step up while ``u >= threshold``.

    Cells are read off the magnitude bits of float32(u). Rounding to float32 keeps order, so that every threshold in a
    lower cell is below ``u`` and every one in a higher cell is above it; only those in the same cell are compared.
    """

    first: Int[np.ndarray, " cells"]
    """int32: how many thresholds lie in lower cells."""
    shift: int
    """Magnitude bits that are dropped."""
    floor: int
    """The kept bits that count as cell 0, the middle one."""
    top: int
    """Cells on either side of the middle one."""
    steps: int
    """Comparisons that settle every ``u``: the most thresholds that one cell holds."""
    thresholds: Float[np.ndarray, " padded"]
    """The grid's thresholds, then ``steps`` times plus infinity."""
    levels: Float[np.ndarray, " levels"]
    """The grid's levels."""


@kernel(inline=True)
def cell_of(u, shift, floor, top):  # noqa: ANN001, ANN201
    """Return the table cell of a float32 ``u``."""
    pattern = bits_of(u)
    magnitude = min(max(((pattern & np.int32(0x7FFFFFFF)) >> shift) - floor, np.int32(0)), top)
    return top + (magnitude if pattern >= 0 else -magnitude)


@lru_cache(maxsize=64)
def code_table(grid: Grid) -> CodeTable:
    """Build the table of a grid (kept for the grids used last)."""
    return table_of(np.asarray(grid.thresholds, dtype=np.float64), np.asarray(grid.levels, dtype=np.float64))


def table_of(thresholds: Float[np.ndarray, " levels-1"], levels: Float[np.ndarray, " levels"]) -> CodeTable:
    """Build the table of any thresholds: as few leading bits as leave one threshold in a cell, or as few as can be."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = thresholds.astype(np.float32)
    pattern = narrow.view(np.int32)
    magnitude = pattern & np.int32(0x7FFFFFFF)
    sign = np.where(pattern >= 0, 1, -1)
    highest = int(magnitude.max())
    lowest = int(magnitude[magnitude > 0].min(initial=highest))
    best: tuple[int, int, int, int] | None = None
    for mantissa in range(1, 19):
        shift = 23 - mantissa
        for reach in (lowest, max(lowest, highest - (40 << 23)), max(lowest, highest - (24 << 23))):
            floor = max((reach >> shift) - 1, 0)
            top = (highest >> shift) - floor + 1
            if 2 * top + 1 > _LONGEST:
                continue
            cells = top + sign * np.clip((magnitude >> shift) - floor, 0, top)
            steps = int(np.bincount(cells).max())
            if best is None or steps < best[0]:
                best = (steps, shift, floor, top)
            break
        if best is not None and best[0] == 1:
            break
    assert best is not None
    steps, shift, floor, top = best
    cells = top + sign * np.clip((magnitude >> shift) - floor, 0, top)
    first = np.searchsorted(cells, np.arange(2 * top + 1), side="left").astype(np.int32)
    padded = np.concatenate([thresholds, np.full(steps, np.inf)])
    return CodeTable(first, shift, floor, top, steps, padded, np.ascontiguousarray(levels))

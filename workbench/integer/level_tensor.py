"""A quantized tensor as integers to multiply: codes, their integer levels, integer zero points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import IntegerError
from workbench.grids import Grid
from workbench.integer.level_table import LevelTable, level_table
from workbench.quantization.blocks import spread
from workbench.quantization.quantize import QuantizedTensor


@dataclass(frozen=True, repr=False, eq=False)
class LevelTensor:
    """Integers that stand for a quantized tensor: ``real ~ scale * (values - zero_point)``, a scale for each group."""

    codes: Int[np.ndarray, "rows columns"]
    """What is stored."""
    values: Int[np.ndarray, "rows columns"]
    """What is multiplied: int8 or int16."""
    zero_point: Int[np.ndarray, "rows groups"]
    """int64, in units of ``values``; one row where one scale serves the whole tensor."""
    scale: Float[np.ndarray, "rows groups"]
    """float64 above 0: the real size of one unit of ``values``. Used to prepare multipliers, never in a run."""
    group_size: int
    """Consecutive columns that share a scale."""
    table: LevelTable
    """How codes become values (the values of a group with a negative scale have the other sign)."""
    source: QuantizedTensor
    """The quantized tensor itself."""

    @property
    def groups(self) -> int:
        """Scales along a row."""
        return self.scale.shape[1]

    def real(self, start: int = 0, stop: int | None = None) -> Float[np.ndarray, "rows columns"]:
        """Return what the integers of some rows (all by default) stand for, float64."""
        values = self.values[start:stop]
        zero, scale = (
            spread(part if len(part) == 1 else part[start:stop], values.shape[1], self.group_size)
            for part in (self.zero_point, self.scale)
        )
        return scale * (values - zero)

    @property
    def table_error(self) -> float:
        """Root of the energy that the integers miss of the dequantized tensor, relative to it: what the table costs."""
        exact = self.source.dequantize().reshape(self.source.codes.shape).astype(np.float64)
        energy = float((exact * exact).sum())
        missed = float(((self.real() - exact) ** 2).sum())
        return float(np.sqrt(missed / energy)) if energy > 0 else 0.0

    def __repr__(self) -> str:
        rows, columns = self.values.shape
        return f"LevelTensor({rows}x{columns} {self.values.dtype}, {self.scale.size:,} scales, {self.table!r})"


def level_tensor(
    quantized: QuantizedTensor, bits: Literal[8, 16] = 8, *, table: LevelTable | None = None
) -> LevelTensor:
    """Return the integers of a quantized tensor.

    The zero point of a grid that rounds it (asymmetric uniform) is exact; that of a real offset (shifted power grids)
    is rounded to the table's units, which costs at most half a unit of the integers.

    Args:
        quantized: what ``quantize`` gave.
        bits: width of the integers, 8 or 16; 8 becomes 16 where a negative scale turns -128 into 128, and for grids
            with a real offset.
        table: a ready table of the same grid, e.g. one fitted to the codes' occupancy.

    Raises:
        IntegerError: the table is another grid's.
    """
    offset = quantized.grid.normalization == "range" and not quantized.grid.integer_zero_point
    made = level_table(quantized.grid, 16 if offset else bits) if table is None else table
    if made.grid != quantized.grid:
        message = f"the table is of {made.grid} and the tensor of {quantized.grid}: give a table of the same grid"
        raise IntegerError(message)
    values = made.decode(quantized.codes)
    scale = quantized.scale.astype(np.float64)
    shift = np.rint(quantized.offset / made.scale).astype(np.int64)
    shift = np.broadcast_to(shift, scale.shape)
    zero_point = shift + made.zero
    if (scale < 0).any():
        size = quantized.group_size
        flip = spread(np.sign(scale) < 0, values.shape[1], size)
        wide = np.where(flip, -values.astype(np.int32), values)
        zero_point = np.where(scale < 0, -zero_point, zero_point)
        fits = np.iinfo(values.dtype).min <= wide.min() and wide.max() <= np.iinfo(values.dtype).max
        values = wide.astype(values.dtype if fits else np.int16)
        scale = np.abs(scale)
    if (scale == 0).any():
        # A group of zeros decodes to zeros: its integers are the zero point, under any scale; the largest of its row
        # leaves the fixed-point factors of the other groups as they are.
        dead = spread(scale == 0, values.shape[1], quantized.group_size)
        zero = spread(zero_point, values.shape[1], quantized.group_size)
        values = np.where(dead, zero, values).astype(values.dtype)
        largest = scale.max(axis=1, keepdims=True)
        scale = np.where(scale == 0, np.where(largest > 0, largest, 1.0), scale)
    return LevelTensor(
        codes=quantized.codes,
        values=np.ascontiguousarray(values),
        zero_point=zero_point.astype(np.int64),
        scale=scale * made.scale,
        group_size=quantized.group_size,
        table=made,
        source=quantized,
    )


def preferred_table(grid: Grid, bits: Literal[8, 16] = 16) -> LevelTable:
    """Return the 8-bit table where it is exact, else one of the wanted width.

    Args:
        grid: any scalar grid.
        bits: the width that a table with an error should have.
    """
    if grid.normalization == "range" and not grid.integer_zero_point:
        return level_table(grid, 16)
    narrow = level_table(grid, 8)
    return narrow if narrow.exact or bits == 8 else level_table(grid, bits)

"""Weights and biases of integer nodes: integers that a GEMM multiplies, and the real scale of each output channel."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from workbench.errors import IntegerError
from workbench.grids import PowerGrid, UniformGrid
from workbench.grids.grid import Grid
from workbench.integer.graph import Value
from workbench.integer.level_table import LevelTable, level_table
from workbench.quantization.granularity import PerGroup, parse_granularity
from workbench.quantization.quantize import quantize
from workbench.quantization.recipe import Entry, weight_grid
from workbench.quantization.search import search_exponent


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A weight as integers: ``weight ~ scale[row] * (integers[row] - zero_point[row])``.

    Attributes:
        integers: int8, uint8 or int16, shape of the weight: codes of uniform grids, levels of the table of all others.
        scale: float32, one per output channel.
        zero_point: int32, one per output channel; all 0 for symmetric grids.
        grid: the grid, its exponent found.
        bits: what one stored code takes.
    """

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    grid: Grid
    bits: int

    def real(self) -> np.ndarray:
        """Return the float32 weights that the integers stand for."""
        return real_weight(self.integers, self.scale, self.zero_point)


def real_weight(integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """Return ``scale * (integers - zero_point)`` per output channel, float32."""
    shape = (-1,) + (1,) * (integers.ndim - 1)
    steps = integers.astype(np.float64) - zero_point.reshape(shape)
    return (steps * scale.astype(np.float64).reshape(shape)).astype(np.float32)


def integer_weight(weight: np.ndarray, entry: Entry) -> IntegerWeight:
    """Quantize a weight as a recipe's entry says, to integers that a GEMM can multiply.

    Args:
        weight: float (outputs, ...).
        entry: all settings of the layer.

    Raises:
        IntegerError: scales per group (an integer accumulator has one scale), or a grid without a table of levels.
    """
    granularity = parse_granularity(entry.granularity or "channel")
    if isinstance(granularity, PerGroup):
        message = (
            f"an integer layer sums all products of a row in one accumulator, so {entry.pattern!r} takes one weight "
            f"scale per tensor or channel, not {granularity}"
        )
        raise IntegerError(message)
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    grid, searching = weight_grid(entry.weight or "uniform:bits=8")
    if searching and np.any(weight):
        found = search_exponent(weight, grid.bits, granularity)
        grid = PowerGrid(
            bits=grid.bits,
            exponent=found.exponent,
            rounding=grid.rounding,  # pyright: ignore[reportAttributeAccessIssue]
        )
    quantized = quantize(weight, grid, granularity, entry.scale or "absmax")
    rows = weight.shape[0]
    scale = np.broadcast_to(quantized.scale.astype(np.float64), (rows, 1)).reshape(rows)
    if isinstance(grid, UniformGrid):
        integers, step, unit, zero = quantized.codes, 1.0 / grid.n, float(grid.n), 0
    else:
        bits = 8 if entry.table_bits == 8 or (entry.table_bits is None and grid.bits <= 4) else 16
        table = levels_of(grid, bits)
        integers = table.values[np.searchsorted(grid.levels, grid.decode(quantized.codes))]
        step, unit, zero = float(table.scale), 1.0 / float(table.scale), table.zero
    offset = np.broadcast_to(quantized.offset, (rows, 1)).reshape(rows)
    zero_point = (np.rint(offset * unit) + zero).astype(np.int32)
    if np.any(scale < 0):
        # Full-range grids let the scale carry a sign; multipliers cannot, so the integers take it.
        integers = np.where((scale < 0)[:, None], -integers.astype(np.int16), integers)
        fits = integers.min() >= -128 and integers.max() <= 127
        integers, scale = integers.astype(np.int8 if fits else np.int16), np.abs(scale)
    if integers.dtype not in {np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16)}:
        message = f"{grid} needs {integers.dtype} weights; integer layers multiply int8, uint8 or int16"
        raise IntegerError(message)
    return IntegerWeight(
        np.ascontiguousarray(integers).reshape(weight.shape),
        _without_zeros(scale * step).astype(np.float32),
        zero_point,
        grid,
        grid.bits,
    )


@functools.lru_cache(maxsize=256)
def levels_of(grid: Grid, bits: Literal[8, 16]) -> LevelTable:
    """Return the level table of a grid.

    With 16 bits the largest level is 32767, unless the grid has an exact table: the search for a better one costs tenths
    of a second for a relative error that is below 1e-4 either way.
    """
    exact = isinstance(grid, PowerGrid) and grid.exponent in {0.5, 1.0}
    return level_table(grid, bits) if bits == 8 or exact else level_table(grid, bits, peak=32767)


def _without_zeros(scale: np.ndarray) -> np.ndarray:
    """Give channels of zeros a scale all the same: multipliers need one, and their integers are 0 whatever it is."""
    usable = scale[scale > 0]
    return np.where(scale > 0, scale, usable.max() if usable.size else 1.0)


def with_room_for_bias(
    weight: IntegerWeight, bias: np.ndarray | None, input_scale: float, *, wide: bool
) -> tuple[IntegerWeight, np.ndarray | None]:
    """Return the weight and the integer bias of scale ``input_scale * weight scale``.

    A channel of tiny weights beside a large bias (a pruned channel after BatchNorm folding) has a scale at which the bias
    leaves its type: such a channel gets a coarser scale, as converters of runtimes do.

    Args:
        weight: integers.
        bias: float (outputs,), or None.
        input_scale: real scale of the input's integers.
        wide: whether the accumulator has 64 bits (the bias is int64 then, else int32).
    """
    if bias is None:
        return weight, None
    bias = np.asarray(bias, dtype=np.float64)
    limit = 2.0**46 if wide else 2.0**30
    scale = weight.scale.astype(np.float64)
    # A channel without weights has no scale of its own: one that gives its bias 2**20 steps.
    flat = weight.integers.reshape(len(bias), -1)
    dead = np.all(flat == weight.zero_point[:, None], axis=1) & (bias != 0)
    scale = np.where(dead, np.abs(bias) / (input_scale * 2.0**20), scale)
    needed = np.abs(bias) / (input_scale * limit)
    coarse = needed > scale
    if np.any(coarse):
        ratio = np.where(coarse, scale / np.maximum(needed, 1e-300), 1.0)
        shape = (-1,) + (1,) * (weight.integers.ndim - 1)
        steps = np.rint((weight.integers.astype(np.int64) - weight.zero_point.reshape(shape)) * ratio.reshape(shape))
        moved = (steps + weight.zero_point.reshape(shape)).astype(weight.integers.dtype)
        integers = np.where(coarse.reshape(shape), moved, weight.integers)
        scale = np.where(coarse, needed, scale)
        weight = replace(weight, integers=integers)
    weight = replace(weight, scale=scale.astype(np.float32))
    codes = np.rint(bias / (input_scale * weight.scale.astype(np.float64)))
    return weight, codes.astype(np.int64 if wide else np.int32)


def is_wide(*parts: Any) -> bool:
    """Return whether a product of these (values or arrays) accumulates in 64 bits: one of them has 16."""
    return any(_multiplied_type(part).itemsize > 1 for part in parts)


def _multiplied_type(part: Any) -> np.dtype:
    if isinstance(part, Value):
        return part.dtype if part.levels is None else part.levels.dtype
    return part.dtype

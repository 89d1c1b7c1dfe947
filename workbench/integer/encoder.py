"""Integers to codes of any grid by comparing with integer thresholds: how activations are encoded inside an integer run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int

from workbench.errors import IntegerError
from workbench.grids import Grid, parse_grid
from workbench.integer.arguments import one_integer, real_numbers, shown
from workbench.integer.grid_linear import GridLinear
from workbench.quantization.quantize import code_dtype

_LIMIT = (1 << 62) - 1
#: Up to so many levels every threshold is compared; above, channels are searched one by one.
_FEW = 32


@dataclass(frozen=True, repr=False, eq=False)
class IntegerEncoder:
    """Integer thresholds of a grid: an integer gets the code of the last threshold that it reaches."""

    grid: Grid
    thresholds: Int[np.ndarray, "channels levels-1"]
    """int64, ascending: the smallest integer that belongs to the upper of two neighbouring levels; one row for all
    channels, or one for each."""

    def encode(self, values: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the grid's code of each integer, by comparisons only.

        Args:
            values: integers, any shape; the last axis is the channels where each has its own thresholds.

        Raises:
            IntegerError: no integers, or another number of channels.
        """
        given = np.asarray(values)
        if given.dtype.kind not in "iu":
            message = f"an integer encoder takes integers, not {given.dtype}"
            raise IntegerError(message)
        codes = self.grid.codes.astype(code_dtype(self.grid))
        rows = self.thresholds
        if len(rows) == 1:
            return codes[np.searchsorted(rows[0], given, side="right")]
        if given.ndim < 1 or given.shape[-1] != len(rows):
            message = f"the thresholds are for {len(rows)} channels, the integers have shape {given.shape}"
            raise IntegerError(message)
        if rows.shape[1] <= _FEW:
            index = np.zeros(given.shape, dtype=np.int64)
            for column in range(rows.shape[1]):
                index += given >= rows[:, column]
            return codes[index]
        flat = given.reshape(-1, len(rows))
        index = np.stack(
            [np.searchsorted(row, flat[:, channel], side="right") for channel, row in enumerate(rows)], axis=1
        )
        return codes[index].reshape(given.shape)

    def __repr__(self) -> str:
        channels, count = self.thresholds.shape
        return f"IntegerEncoder({self.grid}, {count} thresholds for {'all' if channels == 1 else channels} channels)"


def integer_encoder(
    grid: Grid | str,
    scale: float,
    offset: float = 0.0,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
) -> IntegerEncoder:
    """Prepare, host-side, the integer thresholds with which a run encodes integers to codes of a grid.

    An integer v stands for ``x = input_scale * (v - input_zero_point)`` and is encoded from ``u = x / scale + offset``.
    The threshold t of the grid becomes ``ceil((t - offset) * scale / input_scale) + input_zero_point``, in exact
    rational arithmetic, so the comparison of integers decides as that of the real numbers would.

    Args:
        grid: any scalar grid.
        scale: what the grid's level 1 stands for, above 0.
        offset: where zero lies on the grid's axis (grids of normalization ``range``).
        input_scale: real size of one unit of the integers: one, or one for each channel (an accumulator's
            ``accumulator_scale``), above 0.
        input_zero_point: the integer of 0.

    Raises:
        IntegerError: a scale is not a finite number above 0.

    >>> encoder = integer_encoder("power:bits=3,exponent=0.5,signed=false", 1.0, input_scale=0.01)
    >>> encoder.thresholds[0], encoder.encode(np.array([-5, 0, 1, 2, 50, 1000]))
    (array([ 1,  5, 13, 25, 42, 62, 87]), array([0, 0, 1, 1, 5, 7], dtype=uint8))
    """
    grid = parse_grid(grid)
    units = np.atleast_1d(real_numbers(input_scale, "the input scale"))
    own, shift = real_numbers(scale, "the grid's scale"), real_numbers(offset, "an offset")
    if (
        units.ndim != 1
        or own.size != 1
        or not all(np.isfinite(each).all() and (each > 0).all() for each in (units, own))
    ):
        message = f"scales are finite numbers above 0, not {shown(input_scale)} and {shown(scale)}"
        raise IntegerError(message)
    if shift.size != 1 or not np.isfinite(shift).all():
        message = f"an offset is a finite number, not {shown(offset)}"
        raise IntegerError(message)
    scale, offset = float(own.reshape(())), float(shift.reshape(()))
    input_zero_point = one_integer(input_zero_point, "the input's zero point", -_LIMIT, _LIMIT)
    moved = [(Fraction(float(t)) - Fraction(float(offset))) * Fraction(float(scale)) for t in grid.thresholds]
    rows = np.empty((len(units), len(moved)), dtype=np.int64)
    for channel, unit in enumerate(units.tolist()):
        exact = Fraction(unit)
        rows[channel] = [min(max(math.ceil(t / exact) + int(input_zero_point), -_LIMIT), _LIMIT) for t in moved]
    return IntegerEncoder(grid, rows)


def output_encoder(layer: GridLinear, grid: Grid | str, scale: float, offset: float = 0.0) -> IntegerEncoder:
    """Prepare the encoder that turns a layer's accumulators straight into codes of the next layer's grid.

    No requantization is needed: ``encoder.encode(layer.combine(layer.sums(operand)))``.

    Args:
        layer: the prepared layer.
        grid: the next layer's input grid.
        scale: what its level 1 stands for.
        offset: where zero lies on its axis.

    Raises:
        IntegerError: see ``integer_encoder``.
    """
    return integer_encoder(grid, scale, offset, input_scale=layer.accumulator_scale)

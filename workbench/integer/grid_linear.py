"""Linear layers on any grid in integers: codes, integer levels, integer GEMM, then one requantization.

Three methods give the sums:

- ``levels``: codes become integers by a level table (or ``q*|q|``, or as they are), and an ordinary integer GEMM runs.
- ``per-product``: each product of two levels is looked up in a table of all pairs. The same sums, bit for bit.
- ``power-domain``: the codes themselves are multiplied and added, and one integer root is taken of each sum. That is
  another layer (powers keep products, not sums): an approximation, see ``workbench.integer.power_domain``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from workbench.errors import IntegerError
from workbench.grids import UniformGrid
from workbench.integer.accumulator import needed_bits, worst_case
from workbench.integer.arguments import real_numbers, shown
from workbench.integer.grid_layer import METHODS, GridLinear, Method, code_kind
from workbench.integer.level_table import LevelTable
from workbench.integer.level_tensor import LevelTensor, level_tensor
from workbench.integer.power_root import power_root
from workbench.quantization.quantize import QuantizedTensor

#: Bits of the fixed-point factors that bring the groups of a row to one scale.
GROUP_BITS = 15


def prepare_linear(
    weight: QuantizedTensor,
    input_grid_table: LevelTable,
    input_scale: float,
    input_offset: float = 0.0,
    bias: Any = None,
    *,
    method: Method = "levels",
    weight_table: LevelTable | None = None,
    weight_bits: Literal[8, 16] = 8,
) -> GridLinear:
    """Prepare a linear layer for integer runs: integer levels, zero points, bias, fixed-point group factors.

    Args:
        weight: what ``quantize`` gave: per tensor, per channel or in groups.
        input_grid_table: integers of the input's grid (``level_table(grid, 8 | 16)``).
        input_scale: real scale of the input: what its grid's level 1 stands for, above 0.
        input_offset: where zero lies on the input grid's axis (grids of normalization ``range``).
        bias: real (outputs,), or None.
        method: see the module.
        weight_table: a ready table of the weight's grid.
        weight_bits: width of the weight's integers where no table is given.

    Raises:
        IntegerError: an input scale that is not above 0, a bias of the wrong shape, a method that does not exist or
            cannot take these grids.
    """
    if not isinstance(method, str) or method not in METHODS:
        message = f"a grid layer runs by {', '.join(METHODS)}, not by {shown(method)}"
        raise IntegerError(message)
    if not isinstance(weight, QuantizedTensor):
        message = f"a weight is what quantize(...) gave, not {type(weight).__name__}"
        raise IntegerError(message)
    for each in (input_grid_table, *([] if weight_table is None else [weight_table])):
        if not isinstance(each, LevelTable):
            message = f"tables of integers come from level_table(...), not {type(each).__name__}"
            raise IntegerError(message)
    given_scale, given_offset = real_numbers(input_scale, "the input scale"), real_numbers(input_offset, "an offset")
    if given_scale.size != 1 or not (np.isfinite(given_scale).all() and (given_scale > 0).all()):
        message = f"the input scale is a finite number above 0, not {shown(input_scale)}"
        raise IntegerError(message)
    # Beyond 2**31 units no sum of codes would be left beside the zero point.
    if given_offset.size != 1 or not (np.abs(given_offset / input_grid_table.scale) < 2.0**31).all():
        message = f"an input offset is a finite number on the grid's axis, not {shown(input_offset)}"
        raise IntegerError(message)
    input_scale, input_offset = float(given_scale.reshape(())), float(given_offset.reshape(()))
    levels = level_tensor(weight, weight_bits, table=weight_table)
    table = input_grid_table
    unit = float(input_scale) * table.scale
    zero = table.zero + round(float(input_offset) / table.scale)
    outputs = levels.values.shape[0]
    span = (int(table.values.min()) - zero, int(table.values.max()) - zero)
    if method == "power-domain":
        return _prepare_root(weight, levels, table, float(input_scale), zero, bias)
    scale = unit * levels.scale
    if levels.groups > 1:
        if method == "per-product":
            message = "per-product takes one scale per tensor or channel; groups run by method='levels'"
            raise IntegerError(message)
        return _prepare_groups(levels, table, unit, zero, span, scale, bias, outputs)
    scale = scale[:, 0]
    integers = bias_integers(bias, scale, outputs)
    worst = worst_case(levels.values, *span, weight_zero_point=levels.zero_point[:, 0], bias=integers)
    wide_operands = levels.values.dtype.itemsize > 1 or table.values.dtype.itemsize > 1
    # int16 inputs on plain integer grids run as TensorFlow Lite's 16x8 layers do; integer levels of other grids are
    # ours, and are brought to 32 bits so that every semantics multiplies them with all its bits.
    runtime = isinstance(levels.table.grid, UniformGrid) and isinstance(table.grid, UniformGrid)
    shift = 0 if runtime else max(needed_bits(*worst) - 32, 0)
    products = None
    if method == "per-product":
        if levels.zero_point.any() or (levels.values != levels.table.decode(levels.codes)).any():
            message = f"per-product needs weights whose zero is a level and whose scales are positive, and {weight.grid} has others"
            raise IntegerError(message)
        pairs = levels.table.values.astype(np.int64)[:, None] * (table.values.astype(np.int64) - zero)
        products = np.concatenate([pairs, np.zeros((len(pairs), 1), dtype=np.int64)], axis=1)
    return GridLinear(
        weight=levels,
        input_table=table,
        input_scale=unit,
        input_zero_point=zero,
        bias=integers,
        method=method,
        accumulator_scale=scale * 2.0**shift,
        sum_shift=shift,
        wide=wide_operands and runtime,
        worst=worst,
        products=products,
    )


def _prepare_groups(  # noqa: PLR0917
    levels: LevelTensor,
    table: LevelTable,
    unit: float,
    zero: int,
    span: tuple[int, int],
    scale: np.ndarray,
    bias: Any,
    outputs: int,
) -> GridLinear:
    largest = scale.max(axis=1)
    low = high = 0
    for group in range(levels.groups):
        columns = slice(group * levels.group_size, (group + 1) * levels.group_size)
        bounds = worst_case(levels.values[:, columns], *span, weight_zero_point=levels.zero_point[:, group])
        low, high = min(low, bounds[0]), max(high, bounds[1])
    bits = needed_bits(low, high)
    room = 62 - bits - math.ceil(math.log2(levels.groups))
    if room < 8:
        message = f"the sums of a group need {bits} bits, which leaves no room to add {levels.groups} groups in 64 bits"
        raise IntegerError(message)
    places = min(GROUP_BITS, room)
    multiplier = np.rint(scale / largest[:, None] * 2.0**places).astype(np.int64)
    # The weighed sum keeps as many of its fraction bits as 32 bits hold beside the bias.
    offset = 0 if bias is None else int(np.abs(np.asarray(bias, dtype=np.float64) / largest).max(initial=0.0))
    total_bits = max(bits + math.ceil(math.log2(levels.groups)), needed_bits(0, offset)) + 1
    shift = max(total_bits + places - 31, 0)
    combined = largest * 2.0 ** (shift - places)
    return GridLinear(
        weight=levels,
        input_table=table,
        input_scale=unit,
        input_zero_point=zero,
        bias=bias_integers(bias, combined, outputs),
        method="levels",
        accumulator_scale=combined,
        group_multiplier=multiplier,
        group_bits=places,
        group_shift=shift,
        worst=(low, high),
    )


def _prepare_root(  # noqa: PLR0917
    weight: QuantizedTensor, levels: LevelTensor, table: LevelTable, input_scale: float, zero: int, bias: Any
) -> GridLinear:
    root = power_root(weight, table.grid)
    if zero:
        message = (
            "power-domain sums need inputs whose code 0 is zero: an unsigned or signed power grid, not a shifted one"
        )
        raise IntegerError(message)
    codes = weight.codes.astype(code_kind(levels.table))
    reach = (int(table.grid.codes.min()), int(table.grid.codes.max()))
    worst = worst_case(codes, *reach)
    largest = root.value(max(-worst[0], worst[1]))
    shift = max(largest.bit_length() + 1 - 32, 0)
    scale = input_scale * weight.scale[:, 0].astype(np.float64)
    scale = np.where(scale == 0, 1.0, scale) * root.unit * 2.0**shift
    return GridLinear(
        weight=levels,
        input_table=table,
        input_scale=input_scale * table.scale,
        input_zero_point=0,
        bias=bias_integers(bias, scale, len(codes)),
        method="power-domain",
        accumulator_scale=scale,
        sum_shift=shift,
        worst=worst,
        root=root,
    )


def grid_linear(
    codes: Int[np.ndarray, "..."],
    weight: QuantizedTensor,
    bias: Any = None,
    *,
    input_table: LevelTable,
    input_scale: float,
    input_offset: float = 0.0,
    output_scale: float,
    method: Literal["levels", "per-product"] = "levels",
    weight_bits: Literal[8, 16] = 8,
    **options: Any,
) -> Int[np.ndarray, "..."]:
    """Run a linear layer whose weights (and inputs) lie on any grid: codes in, codes out, integers between.

    Args:
        codes: the input's codes (..., depth).
        weight: what ``quantize`` gave.
        bias: real (outputs,), or None.
        input_table: integers of the input's grid.
        input_scale: what level 1 of the input's grid stands for.
        input_offset: where zero lies on the input grid's axis.
        output_scale: real scale of the output.
        method: ``levels`` or ``per-product``; the approximation ``power-domain`` has a function of its own, whose
            result carries its error.
        weight_bits: width of the weight's integers.
        **options: of ``GridLinear.__call__``: output_zero_point, dtype, low, high, semantics, accumulator.

    Raises:
        IntegerError: see ``prepare_linear``.
        AccumulatorOverflowError: see ``accumulate``.
    """
    if not isinstance(method, str) or method not in {"levels", "per-product"}:
        message = (
            f"grid_linear runs by 'levels' or 'per-product', not by {shown(method)} (power_domain is its own function)"
        )
        raise IntegerError(message)
    layer = prepare_linear(weight, input_table, input_scale, input_offset, bias, method=method, weight_bits=weight_bits)
    return layer(codes, output_scale=output_scale, **options)


def bias_integers(bias: Any, scale: np.ndarray, outputs: int) -> np.ndarray | None:
    """Return a real bias in units of the accumulator, int64.

    Raises:
        IntegerError: another shape, or a bias that needs more than 62 bits.
    """
    if bias is None:
        return None
    values = real_numbers(bias, "a bias")
    if values.shape != (outputs,):
        message = f"a bias has one number for each of the {outputs} outputs, not shape {values.shape}"
        raise IntegerError(message)
    steps = np.rint(values / scale)
    if not np.isfinite(steps).all() or np.abs(steps).max(initial=0.0) >= 2.0**62:
        message = "a bias is finite and at most 2**62 steps of the accumulator"
        raise IntegerError(message)
    return steps.astype(np.int64)

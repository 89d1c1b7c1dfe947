"""Look-ups: rows of a table by index (embeddings), and the place of the largest code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import as_array, check_factors, check_zero_point, code_type, one_integer
from workbench.integer.fixed_point import effective_scale, quantize_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.rescaling import minus, rescale_codes
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.watch import Observation, is_watched, note


def embedding(
    indices: np.ndarray,
    table: np.ndarray,
    *,
    table_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    table_zero_point: int = 0,
    output_zero_point: int = 0,
    dtype: Any = None,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return rows of a table of codes; without scales and multipliers as they are, else requantized.

    Args:
        indices: integers of any shape, 0 to rows - 1.
        table: int8, uint8, int16 or int32 (rows, width).
        table_scale: real scale of the table: one, or one per row; with ``output_scale``, or give ``multiplier``.
        output_scale: real scale of the output.
        multiplier: one ready multiplier in the runtime's convention, or one per row of the table, instead of scales.
        shift: their shifts.
        table_zero_point: code of 0 in the table.
        output_zero_point: code of 0 in the output.
        dtype: integer type of the output; that of the table by default.
        low: smallest output code, where requantized.
        high: largest output code, where requantized.
        semantics: whose rounding, where requantized.

    Returns:
        codes (*indices.shape, width).

    Raises:
        IntegerError: types or shapes do not fit, an index is outside the table, or some but not all scales are given.
        SemanticsError: a factor outside the runtime's specification.
    """
    indices, table = as_array(indices, "the indices"), as_array(table, "the table")
    if table.ndim != 2 or indices.dtype.kind not in "iu":
        message = f"an embedding takes integer indices and a table (rows, width), not {indices.dtype} and {table.shape}"
        raise IntegerError(message)
    code_type(table.dtype)
    check_zero_point(table_zero_point, table.dtype)
    if indices.size and (indices.min() < 0 or indices.max() >= len(table)):
        wrong = indices[(indices < 0) | (indices >= len(table))].flat[0]
        message = f"the table has rows 0 to {len(table) - 1}, and none of index {wrong}"
        raise IntegerError(message)
    rows = table[indices]
    kind = table.dtype if dtype is None else code_type(dtype)
    ready = check_factors(multiplier, shift, table_scale, output_scale)
    if not ready and table_scale is None and output_scale is None:
        if kind != table.dtype or int(output_zero_point) != int(table_zero_point):
            message = "rows that change their type or zero point are requantized: give scales, or a multiplier"
            raise IntegerError(message)
        if is_watched():
            note(Observation("embedding", outputs=int(rows.size)))
        return rows
    factors = table_scale if multiplier is None else multiplier
    alone = factors is None or as_array(factors, "a factor").size == 1
    named = outside_linear(semantics)
    if alone:
        return rescale_codes(
            rows,
            input_scale=table_scale,
            output_scale=output_scale,
            multiplier=multiplier,
            shift=shift,
            input_zero_point=table_zero_point,
            output_zero_point=output_zero_point,
            dtype=kind,
            low=low,
            high=high,
            semantics=named,
        )
    if multiplier is None:
        if table_scale is None or output_scale is None:
            message = "give the scales of table and output, or ready multipliers and shifts"
            raise IntegerError(message)
        multiplier, shift = quantize_multiplier(effective_scale(table_scale, 1.0, output_scale, named), named)
    factors = np.asarray(multiplier)
    shifts = np.zeros(factors.shape, dtype=np.int32) if shift is None else np.asarray(shift)
    if factors.shape != (len(table),) or shifts.shape != factors.shape:
        message = f"one multiplier or one per row ({len(table)}), not {factors.shape}"
        raise IntegerError(message)
    flat = indices.ravel()
    differences = minus(rows.reshape(len(flat), math.prod(table.shape[1:])), table_zero_point)
    codes = requantize(
        differences,
        factors[flat],
        shifts[flat],
        zero_point=output_zero_point,
        dtype=kind,
        low=low,
        high=high,
        axis=0,
        semantics=named,
        operator="embedding",
    )
    return codes.reshape(rows.shape)


def argmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the place of the largest code along an axis, the first where several are equal (as all runtimes do).

    Args:
        x: integers of one scale and zero point.
        axis: along which axis.

    Returns:
        int64, without that axis.

    Raises:
        IntegerError: not integers, no such axis, or an axis of length 0.
    """
    x = as_array(x, "the input")
    if x.ndim:
        axis = one_integer(axis, "an axis", -x.ndim, x.ndim - 1)
    if x.dtype.kind not in "iu" or not x.ndim or x.shape[axis] == 0:
        message = f"argmax takes integers along an axis that is not empty, not {x.dtype} {x.shape} along axis {axis}"
        raise IntegerError(message)
    if is_watched():
        note(Observation("argmax", outputs=int(x.size // x.shape[axis])))
    return np.argmax(x, axis=axis)

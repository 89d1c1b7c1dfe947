"""Rotary position embedding in integers, with fixed-point tables of sines and cosines (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import (
    TENSOR_TYPES,
    as_array,
    check_word,
    check_zero_point,
    code_type,
    one_integer,
    real_numbers,
    shown,
)
from workbench.integer.polynomials import fixed_multiplier
from workbench.integer.tables import check_scale
from workbench.integer.watch import Observation, note
from workbench.kernels.rotary import rotate

#: Fractional bits of a table's entries, by its width.
FRACTION_BITS = {16: 14, 32: 22}
LAYOUTS = ("half", "interleaved")


@dataclass(frozen=True, eq=False)
class RotaryTable:
    """Cosines and sines of every position's angles, in fixed point.

    Attributes:
        cosine: int16 or int32 (positions, pairs): ``round(cos * 2**fraction_bits)``.
        sine: the same of the sine.
        fraction_bits: 14 for int16, 22 for int32: a cosine of 1 is exact in both.
    """

    cosine: np.ndarray
    sine: np.ndarray
    fraction_bits: int


def rotary_table(
    positions: int,
    width: int,
    *,
    base: float = 10000.0,
    frequencies: Any = None,
    bits: int = 16,
) -> RotaryTable:
    """Return the table for positions 0 to ``positions - 1``: angle = position * base**(-2 i / width) for pair i.

    Args:
        positions: how many.
        width: of the rotated part of a head, even.
        base: 10000, or the model's (``rope_theta``).
        frequencies: real numbers (width / 2,) instead of the powers of ``base`` (scaled or learnt ones).
        bits: 16 or 32: of an entry.

    Raises:
        IntegerError: sizes, widths or frequencies that make no table.
    """
    positions = one_integer(positions, "the number of positions", 0, 1 << 26)
    width, bits = one_integer(width, "a width", 2, 1 << 20), one_integer(bits, "16 or 32 bits", 16, 32)
    if width % 2 or bits not in FRACTION_BITS:
        message = f"a rotary table has an even width and 16 or 32 bits, not {width} and {bits}"
        raise IntegerError(message)
    if frequencies is None:
        number = real_numbers(base, "a base")
        if number.size != 1 or not np.all(np.isfinite(number) & (number > 0)):
            message = f"a base is a finite number above 0, not {shown(base)}"
            raise IntegerError(message)
        turns = float(number.reshape(())) ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    else:
        turns = real_numbers(frequencies, "a frequency")
        if turns.shape != (width // 2,) or not np.all(np.isfinite(turns)):
            message = f"the frequencies are finite and ({width // 2},), not {turns.shape}"
            raise IntegerError(message)
    angles = np.arange(positions, dtype=np.float64)[:, None] * turns
    fraction = FRACTION_BITS[bits]
    kind = np.int16 if bits == 16 else np.int32
    cosine, sine = (np.rint(wave * 2.0**fraction).astype(kind) for wave in (np.cos(angles), np.sin(angles)))
    return RotaryTable(cosine, sine, fraction)


def rotary(
    x: Any,
    table: RotaryTable,
    *,
    positions: Any = None,
    layout: str = "half",
    input_scale: Any = None,
    output_scale: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    dtype: Any = None,
) -> np.ndarray:
    """Return every pair (a, b) turned by its position's angle: (a cos - b sin, b cos + a sin).

    ``code = ((a C - b S) m + 2**(s - 1)) >> s`` plus the zero point, C and S the table's entries, ``m / 2**s`` =
    input_scale / output_scale / 2**fraction_bits (m = 1 where the scales are equal: one rounding, exact products).

    Args:
        x: int8, uint8 or int16 (..., positions, width); heads are leading axes. A width beyond the table's pairs is
            passed on unturned (partial rotary embedding).
        table: from ``rotary_table``.
        positions: integers (positions,): the table's row for each; 0, 1, 2, ... by default.
        layout: ``half`` pairs i with i + pairs (Llama, Gemma, GPT-NeoX), ``interleaved`` 2i with 2i + 1 (GPT-J).
        input_scale: real scale of the input; both scales, or neither where they are equal.
        output_scale: real scale of the output.
        input_zero_point: the input's code of 0.
        output_zero_point: the output's code of 0.
        dtype: type of the output; the input's by default.

    Raises:
        IntegerError: types, shapes, scales, zero points or positions do not fit.
    """
    codes = as_array(x, "the input")
    given = code_type(codes.dtype, TENSOR_TYPES, "a rotary embedding takes")
    wanted = given if dtype is None else code_type(dtype, TENSOR_TYPES, "a rotary embedding gives")
    if not isinstance(table, RotaryTable):
        message = f"the table comes from rotary_table, not {shown(table)}"
        raise IntegerError(message)
    check_zero_point(input_zero_point, codes.dtype)
    check_zero_point(output_zero_point, wanted)
    pairs = table.cosine.shape[1]
    if codes.ndim < 2 or codes.shape[-1] < 2 * pairs:
        message = f"the input is (..., positions, {2 * pairs} or more), not {codes.shape}"
        raise IntegerError(message)
    check_word(layout, LAYOUTS, "a layout")
    rows = np.arange(codes.shape[-2]) if positions is None else as_array(positions, "positions")
    if rows.dtype.kind not in "iu" or rows.shape != (codes.shape[-2],):
        message = f"positions are integers ({codes.shape[-2]},), not {rows.dtype} {rows.shape}"
        raise IntegerError(message)
    if np.any(rows < 0) or np.any(rows >= len(table.cosine)):
        message = f"the table holds positions 0 to {len(table.cosine) - 1}, not {int(rows.max())}"
        raise IntegerError(message)
    if (input_scale is None) != (output_scale is None):
        message = "give both scales, or neither where they are equal"
        raise IntegerError(message)
    multiplier, shift = 1, table.fraction_bits
    if input_scale is not None:
        ratio = check_scale(input_scale, "input") / check_scale(output_scale, "output")
        if ratio != 1:
            # Two products have 18 bits more than the table: the rest of 60 bits is the multiplier's.
            factor = fixed_multiplier(ratio * 2.0**-table.fraction_bits, 60 - 18 - table.fraction_bits)
            multiplier, shift = (int(each) for each in factor)
    if shift < 1:
        message = "the output scale is too small for the input's: nothing but clamped codes would come out"
        raise IntegerError(message)
    stacked = np.ascontiguousarray(codes).reshape(math.prod(codes.shape[:-2]), *codes.shape[-2:])
    out, saturated = rotate(
        stacked,
        rows.astype(np.int64),
        int(input_zero_point),
        table.cosine,
        table.sine,
        multiplier,
        shift,
        1 << table.fraction_bits,
        int(output_zero_point),
        wanted,
        interleaved=layout == "interleaved",
    )
    note(Observation("rotary", outputs=int(out.size), saturated=saturated))
    return out.reshape(codes.shape)

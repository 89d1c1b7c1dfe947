"""Stored weights as the codes that kernels read, and back: bf16, f16, f32 and f64 without a converted copy.

numba knows neither bfloat16 nor (on CPUs) float16, so 16-bit weights travel as integers of two different types, and
the type says which they are: ``uint16`` holds bf16 codes, ``int16`` holds f16 codes.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_codes(rows: np.ndarray) -> np.ndarray:
    """Return the array that kernels read for weights as they are stored; 16-, 32- and 64-bit ones without a copy.

    Args:
        rows: weights of any floating-point dtype that ml_dtypes or numpy has.

    Returns:
        uint16 (bf16), int16 (f16), float32 or float64, C-contiguous; 8-bit floats are widened to float32.
    """
    rows = np.ascontiguousarray(rows)
    if rows.dtype == _BFLOAT16:
        return rows.view(np.uint16)
    if rows.dtype == np.float16:
        return rows.view(np.int16)
    if rows.dtype in {np.dtype(np.float32), np.dtype(np.float64)}:
        return rows
    return rows.astype(np.float32)


def _value(typing_context, code):
    """Return the number that a code stands for: float32, or float64 for float64 weights (exact in every case)."""
    if code in {types.float32, types.float64}:
        return code(code), lambda context, builder, signature, arguments: arguments[0]
    if code == types.uint16:

        def widen_bfloat16(context, builder, signature, arguments):
            wide = builder.zext(arguments[0], ir.IntType(32))
            return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

        return types.float32(code), widen_bfloat16
    if code == types.int16:

        def widen_float16(context, builder, signature, arguments):
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

        return types.float32(code), widen_float16
    return None


def _bits_of(typing_context, number):
    """Return the bit pattern of a float32 as int32, of a float64 as int64."""
    pattern = {types.float32: types.int32, types.float64: types.int64}.get(number)
    if pattern is None:
        return None

    def reinterpret(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(pattern.bitwidth))

    return pattern(number), reinterpret


def _float_of(typing_context, pattern):
    """Return the float32 whose bit pattern is this int32, the float64 whose bit pattern is this int64."""
    number = {types.int32: types.float32, types.int64: types.float64}.get(pattern)
    if number is None:
        return None
    target = ir.FloatType() if number == types.float32 else ir.DoubleType()

    def reinterpret(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], target)

    return number(pattern), reinterpret


def _rank(typing_context, code):
    """Return an integer that orders codes as their numbers are ordered (-0 just below 0): int16, int32 or int64."""
    widths = {types.uint16: 16, types.int16: 16, types.float32: 32, types.float64: 64}
    width = widths.get(code)
    if width is None:
        return None
    integer = {16: types.int16, 32: types.int32, 64: types.int64}[width]

    def order(context, builder, signature, arguments):
        kind = ir.IntType(width)
        pattern = arguments[0]
        if isinstance(code, types.Float):
            pattern = builder.bitcast(pattern, kind)
        # A negative number's magnitude bits are flipped, so that larger magnitudes come first.
        sign = builder.ashr(pattern, ir.Constant(kind, width - 1))
        flip = builder.and_(sign, ir.Constant(kind, (1 << (width - 1)) - 1))
        return builder.xor(pattern, flip)

    return integer(code), order


def _code_of_rank(typing_context, position, like):
    """Return the code whose ``rank`` this is; ``like`` is any code of the wanted type."""
    widths = {types.uint16: 16, types.int16: 16, types.float32: 32, types.float64: 64}
    width = widths.get(like)
    if width is None or position != {16: types.int16, 32: types.int32, 64: types.int64}[width]:
        return None

    def restore(context, builder, signature, arguments):
        kind = ir.IntType(width)
        sign = builder.ashr(arguments[0], ir.Constant(kind, width - 1))
        flip = builder.and_(sign, ir.Constant(kind, (1 << (width - 1)) - 1))
        pattern = builder.xor(arguments[0], flip)
        if isinstance(like, types.Float):
            return builder.bitcast(pattern, ir.FloatType() if width == 32 else ir.DoubleType())
        return pattern

    return like(position, like), restore


# The decorator hides the typing context that numba passes first; type checkers do not know that.
value: Any = intrinsic(_value)
bits_of: Any = intrinsic(_bits_of)
float_of: Any = intrinsic(_float_of)
rank: Any = intrinsic(_rank)
code_of_rank: Any = intrinsic(_code_of_rank)

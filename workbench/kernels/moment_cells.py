"""One cell of a moment histogram: four float64 sums that one vector instruction adds to."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _add_moments(typing_context, cells, start, square, scale, weight):  # noqa: ANN001, ANN202, PLR0917
    """Add (1, square, scale * weight, weight * weight) to cells[start : start + 4].

    Written out as LLVM vectors: the compiler leaves four separate additions as they are, which takes three times as
    long. LLVM turns the vector into whatever the machine has.
    """

    def add(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        double = ir.DoubleType()
        four = ir.VectorType(double, 4)
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        cell = builder.bitcast(builder.gep(array.data, [arguments[1]]), four.as_pointer())
        one = ir.Constant(double, 1.0)

        def pack(*values):  # noqa: ANN002, ANN202
            packed = ir.Constant(four, ir.Undefined)
            for lane, value in enumerate(values):
                packed = builder.insert_element(packed, value, ir.Constant(ir.IntType(32), lane))
            return packed

        _, _, s2, s, w = arguments
        moments = builder.fmul(pack(one, s2, s, w), pack(one, one, w, w))
        builder.store(builder.fadd(builder.load(cell, align=8), moments), cell, align=8)
        return context.get_dummy_value()

    return types.void(cells, start, square, scale, weight), add


add_moments: Any = intrinsic(_add_moments)

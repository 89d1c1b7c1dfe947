"""Four products of bytes added to a sum of 32 bits: one instruction of a GPU (``dp4a``), plain arithmetic elsewhere."""

# Compiled functions: numba infers their types.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda, types
from numba.core import config
from numba.cuda.extending import intrinsic

#: Whether numba's simulator runs the kernels in Python.
SIMULATED = bool(config.ENABLE_CUDASIM)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def dot4(*, left_signed: bool, right_signed: bool, plain: bool) -> Any:
    """Return a device function (left word, right word, sum) -> sum, int32 each, that wraps at 32 bits.

    Args:
        left_signed: whether the left word holds four int8 or four uint8.
        right_signed: likewise.
        plain: unpack the bytes instead: for the simulator, and for GPUs before compute capability 6.1.
    """
    if plain or SIMULATED:
        return _plain(128 if left_signed else 0, 128 if right_signed else 0)
    name = f"dp4a.{'s' if left_signed else 'u'}32.{'s' if right_signed else 'u'}32"

    def multiply_add(typing_context, left, right, total):
        def generate(context, builder, signature, arguments):
            word = ir.IntType(32)
            instruction = ir.InlineAsm(ir.FunctionType(word, [word] * 3), f"{name} $0, $1, $2, $3;", "=r,r,r,r")
            return builder.call(instruction, arguments)

        return types.int32(types.int32, types.int32, types.int32), generate

    return intrinsic(multiply_add)


def _plain(left_turn: int, right_turn: int) -> Any:
    # A byte with its highest bit turned over, minus 128, is the signed number that it stood for.
    @cuda.jit(device=True)
    def multiply_add(left, right, total):
        result = np.int64(total)
        for byte in range(4):
            one = (((left >> (8 * byte)) & 255) ^ left_turn) - left_turn
            other = (((right >> (8 * byte)) & 255) ^ right_turn) - right_turn
            result += np.int64(one) * np.int64(other)
        return np.int32(result)

    return multiply_add


def has_instruction() -> bool:
    """Return whether the current GPU has ``dp4a``."""
    return not SIMULATED and tuple(cuda.get_current_device().compute_capability) >= (6, 1)

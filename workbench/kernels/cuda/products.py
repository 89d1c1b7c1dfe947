"""Tiles of integer products on a GPU; what becomes of a sum (stored, or rounded to a code) is compiled in.

Bytes are multiplied four at a time (``dot4``) by blocks of 16 x 16 threads with 4 x 4 sums each, from tiles in shared
memory; a single row has a block of threads per output instead. 16-bit operands are multiplied one by one into 64 bits.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917
# numba-cuda annotates its stubs, not what they stand for inside a kernel.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportOptionalSubscript=false

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda, types

from workbench.kernels.cuda.dot4 import SIMULATED, dot4
from workbench.kernels.cuda.rounding import rounding

#: Threads along either side of a block, outputs per thread along either side, and words of depth that are staged.
SIDE, EACH, WORDS = 4 if SIMULATED else 16, 4, 8
TILE, SUMS = SIDE * EACH, EACH * EACH

#: One number more than a row of a tile has, so that threads which read a column meet different banks of memory.
PADDED = SIDE + 1

#: Threads that share one output where there is one row.
LINE = 8 if SIMULATED else 128


@cuda.jit(device=True)
def _plain_word(right, table, batch, column, word):
    return right[batch, column, word]


@cuda.jit(device=True)
def _packed_word(right, table, batch, column, word):
    low, high = np.int32(right[batch, column, 2 * word]), np.int32(right[batch, column, 2 * word + 1])
    first, second = table[low & 15], table[low >> 4]
    third, fourth = table[high & 15], table[high >> 4]
    return np.int32((first & 255) | ((second & 255) << 8) | ((third & 255) << 16) | (fourth << 24))


@cuda.jit(device=True)
def _plain_element(right, table, batch, column, k):
    return np.int64(right[batch, column, k])


@cuda.jit(device=True)
def _packed_element(right, table, batch, column, k):
    return np.int64(table[(right[batch, column, k // 2] >> (4 * (k % 2))) & 15])


def _finish(factor_type: str | None) -> Any:
    """Return the device function that stores a sum, or its code."""
    if factor_type is None:

        @cuda.jit(device=True)
        def store(total, batch, row, column, offset, row_part, zeros, factors, shifts, numbers, out, counts):
            out[batch, row, column] = total

        return store
    rescale = rounding(np.dtype(factor_type))

    @cuda.jit(device=True)
    def store_code(total, batch, row, column, offset, row_part, zeros, factors, shifts, numbers, out, counts):
        added = np.int64(total) + offset[batch if offset.shape[0] > 1 else 0, column]
        added += row_part[batch, row] * zeros[column]
        # numbers: rule, zero point, low, high, the type's least and largest, bits of the accumulator.
        value = np.int64(np.int32(added)) if numbers[6] == 32 else added
        code, wrapped = rescale(value, factors[column], shifts[column], numbers[0])
        code += numbers[1]
        if wrapped:
            cuda.atomic.add(counts, 1, 1)
        if code < numbers[4] or code > numbers[5]:
            cuda.atomic.add(counts, 0, 1)
        out[batch, row, column] = min(max(code, numbers[2]), numbers[3])

    return store_code


@cache
def byte_kernels(  # noqa: ANN201
    left_signed: bool, right_signed: bool, *, packed: bool, factor_type: str | None, plain: bool
):
    """Return the kernel for many rows and the one for few, for operands of bytes.

    Args:
        left_signed: whether the left operand is int8 or uint8.
        right_signed: whether the right one is.
        packed: whether the right one is codes of 4 bits and a table.
        factor_type: ``"float32"``, ``"float64"`` or ``"int64"`` to store codes; None to store sums.
        plain: see ``dot4``.
    """
    multiply_add = dot4(left_signed=left_signed, right_signed=right_signed, plain=plain)
    word_of = _packed_word if packed else _plain_word
    finish = _finish(factor_type)

    @cuda.jit
    def tiles(left, right, table, offset, row_part, zeros, factors, shifts, numbers, out, counts):
        lefts = cuda.shared.array((WORDS, TILE), types.int32)
        rights = cuda.shared.array((WORDS, TILE), types.int32)
        sums = cuda.local.array(SUMS, types.int32)
        x, y, batch = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
        first_row, first_column = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        rows, words, columns = left.shape[1], left.shape[2], out.shape[2]
        for place in range(SUMS):
            sums[place] = 0
        for start in range(0, words, WORDS):
            for place in range(y * SIDE + x, TILE * WORDS, SIDE * SIDE):
                line, word = place // WORDS, place % WORDS
                inside = start + word < words
                lefts[word, line] = (
                    left[batch, first_row + line, start + word] if inside and first_row + line < rows else 0
                )
                rights[word, line] = (
                    word_of(right, table, batch, first_column + line, start + word)
                    if inside and first_column + line < columns
                    else 0
                )
            cuda.syncthreads()
            for word in range(WORDS):
                for one in range(EACH):
                    for other in range(EACH):
                        sums[one * EACH + other] = multiply_add(
                            lefts[word, y + SIDE * one], rights[word, x + SIDE * other], sums[one * EACH + other]
                        )
            cuda.syncthreads()
        for one in range(EACH):
            for other in range(EACH):
                row, column = first_row + y + SIDE * one, first_column + x + SIDE * other
                if row < rows and column < columns:
                    finish(
                        sums[one * EACH + other],
                        batch,
                        row,
                        column,
                        offset,
                        row_part,
                        zeros,
                        factors,
                        shifts,
                        numbers,
                        out,
                        counts,
                    )

    @cuda.jit
    def line(left, right, table, offset, row_part, zeros, factors, shifts, numbers, out, counts):
        parts = cuda.shared.array(LINE, types.int32)
        x, column, row, batch = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        total = np.int32(0)
        for word in range(x, left.shape[2], LINE):
            total = multiply_add(left[batch, row, word], word_of(right, table, batch, column, word), total)
        parts[x] = total
        cuda.syncthreads()
        if x == 0:
            # Sums of 32 bits wrap; in 64 bits nothing is lost before they do.
            whole = np.int64(0)
            for place in range(LINE):
                whole += parts[place]
            finish(np.int32(whole), batch, row, column, offset, row_part, zeros, factors, shifts, numbers, out, counts)

    return tiles, line


@cache
def wide_kernel(packed: bool, factor_type: str | None):  # noqa: ANN201
    """Return the kernel for operands of which one has 16 bits: one thread per output, sums of 64 bits."""
    element_of = _packed_element if packed else _plain_element
    finish = _finish(factor_type)

    @cuda.jit
    def tiles(left, right, table, offset, row_part, zeros, factors, shifts, numbers, out, counts):
        lefts = cuda.shared.array((SIDE, SIDE), types.int64)
        rights = cuda.shared.array((SIDE, PADDED), types.int64)
        x, y, batch = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
        row, first_column = cuda.blockIdx.y * SIDE + y, cuda.blockIdx.x * SIDE
        rows, depth, columns = left.shape[1], left.shape[2], out.shape[2]
        total = np.int64(0)
        for start in range(0, depth, SIDE):
            inside = start + x < depth
            lefts[y, x] = np.int64(left[batch, row, start + x]) if inside and row < rows else 0
            rights[y, x] = (
                element_of(right, table, batch, first_column + y, start + x)
                if inside and first_column + y < columns
                else 0
            )
            cuda.syncthreads()
            for k in range(SIDE):
                total += lefts[y, k] * rights[x, k]
            cuda.syncthreads()
        column = first_column + x
        if row < rows and column < columns:
            finish(total, batch, row, column, offset, row_part, zeros, factors, shifts, numbers, out, counts)

    return tiles

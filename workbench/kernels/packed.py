"""Matrix products with weights of 4 bits, two codes per byte, whose numbers stand in a table of 16.

Any grid of up to 16 levels goes this way, power-exponent grids among them. One row looks its numbers up between memory and
multiplication, so half the bytes are read; more rows unpack a few columns into the cache and multiply from there.
"""

# Compiled functions: numba infers their types, and they take addresses, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from workbench.kernels.dot_steps import plan_of
from workbench.kernels.dot_tiles import LINE
from workbench.kernels.instruction_sets import InstructionSet, instruction_set
from workbench.kernels.integer_gemm import COLUMNS, FEW, ROWS, TYPES, Job, aligned, multiply_block, row_sums
from workbench.kernels.nibble_tiles import line_plan, line_span, packed_line, unpack_step
from workbench.kernels.runtime import kernel, lock, take, threads


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Return codes 0...15 two per byte along the last axis, the first in the low half; an odd end is filled with 0.

    Args:
        codes: integers 0 to 15 (..., depth).

    Returns:
        uint8 (..., ceil(depth / 2)).

    Raises:
        ValueError: a code outside 0...15.

    >>> pack_nibbles(np.array([1, 2, 3]))
    array([33,  3], dtype=uint8)
    """
    codes = np.asarray(codes)
    if codes.ndim < 1 or codes.dtype.kind not in "iu" or (codes.size and (codes.min() < 0 or codes.max() > 15)):
        message = "codes of 4 bits are integers from 0 to 15 along an axis"
        raise ValueError(message)
    packed = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // 2)), dtype=np.uint8)
    packed |= codes[..., 0::2].astype(np.uint8)
    packed[..., : codes.shape[-1] // 2] |= codes[..., 1::2].astype(np.uint8) << 4
    return packed


def unpack_nibbles(packed: np.ndarray, depth: int | None = None) -> np.ndarray:
    """Return the codes that ``pack_nibbles`` packed.

    Args:
        packed: uint8 (..., bytes).
        depth: how many codes each row has; by default two per byte.

    Returns:
        uint8 (..., depth).

    Raises:
        ValueError: other types, or a depth that these bytes do not hold.

    >>> unpack_nibbles(np.array([33, 3], dtype=np.uint8), 3)
    array([1, 2, 3], dtype=uint8)
    """
    packed = np.asarray(packed)
    wanted = 2 * packed.shape[-1] if depth is None else depth
    if packed.dtype != np.uint8 or packed.ndim < 1 or packed.shape[-1] != -(-wanted // 2):
        message = f"{wanted} codes of 4 bits lie in {-(-wanted // 2)} bytes, not in {packed.dtype} {packed.shape}"
        raise ValueError(message)
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), dtype=np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes[..., :wanted]


@kernel(inline=True)
def _row_unit(machine, left_kind, number, left, packed, stride, columns, steps, tails, tail, table, base, out):
    span = line_span(machine, left_kind)
    first = number * COLUMNS
    for column in range(first, min(first + COLUMNS, columns), LINE):
        packed_line(
            machine,
            left_kind,
            left,
            packed + column * stride,
            stride,
            columns - column,
            steps,
            tails + column * span,
            tail,
            table,
            base,
            out + column * 4,
        )


@kernel()
def _row_alone(machine, left_kind, units, left, packed, stride, columns, steps, tails, tail, table, base, out):
    for number in range(units):
        _row_unit(machine, left_kind, number, left, packed, stride, columns, steps, tails, tail, table, base, out)


@kernel(parallel=True)
def _row_together(
    machine, left_kind, units, left, packed, stride, columns, steps, tails, tail, table, base, out, counter, workers
):
    for _ in prange(workers):
        number = take(counter)
        while number < units:
            _row_unit(machine, left_kind, number, left, packed, stride, columns, steps, tails, tail, table, base, out)
            number = take(counter)


@kernel()
def _unpack(machine, packed, levels, table, first, scratch):
    """Write the numbers of some rows of packed codes, from row ``first`` on, as many as fit."""
    count = packed.shape[1]
    widest = np.int64(64)
    for row in range(min(scratch.shape[0], packed.shape[0] - first)):
        source, target = packed[first + row].ctypes.data, scratch[row].ctypes.data
        byte = 0
        while byte + widest <= count:
            byte += unpack_step(machine, scratch[0, 0], source + byte, table, target + 2 * byte * scratch.itemsize)
        while byte < count:
            code = packed[first + row, byte]
            scratch[row, 2 * byte] = levels[code & 15]
            scratch[row, 2 * byte + 1] = levels[code >> 4]
            byte += 1


@kernel()
def _block_unit(machine, left_kind, number, packed, levels, table, scratch, job):
    right_kind = scratch[0, 0]
    first = number * scratch.shape[0]
    columns = min(scratch.shape[0], job.columns - first)
    _unpack(machine, packed, levels, table, first, scratch)
    stride = scratch.shape[1] * scratch.itemsize
    item = job.right_batch
    zero: Any = np.int64(0)
    piece = Job(
        job.batches,
        job.rows,
        columns,
        job.steps,
        job.left,
        job.left_stride,
        job.left_batch,
        scratch.ctypes.data,
        stride,
        zero,
        zero,
        zero,
        zero,
        job.base,
        zero,
    )
    for row in range(0, job.rows, ROWS):
        multiply_block(
            machine,
            left_kind,
            right_kind,
            piece,
            0,
            row,
            min(ROWS, job.rows - row),
            0,
            columns,
            job.base + row * item,
            job.out + (row * job.columns + first) * item,
            job.columns * item,
        )


@kernel()
def _block_alone(machine, left_kind, units, packed, levels, table, scratch, job):
    for number in range(units):
        _block_unit(machine, left_kind, number, packed, levels, table, scratch[0], job)


@kernel(parallel=True)
def _block_together(machine, left_kind, units, packed, levels, table, scratch, job, counter):
    for worker in prange(scratch.shape[0]):
        number = take(counter)
        while number < units:
            _block_unit(machine, left_kind, number, packed, levels, table, scratch[worker], job)
            number = take(counter)


def packed_matmul(x: np.ndarray, packed: np.ndarray, level_table: np.ndarray, path: str | None = None) -> np.ndarray:
    """Return ``x @ level_table[unpack_nibbles(packed, depth)].T``, exact modulo the accumulator's width.

    Args:
        x: int8, uint8 or int16 (rows, depth).
        packed: uint8 (columns, ceil(depth / 2)), see ``pack_nibbles``.
        level_table: int8 or int16 (16,): the number that each code stands for.
        path: an instruction set's name (``workbench.kernels.instruction_sets``); by default the fastest.

    Returns:
        int32 (rows, columns) where both x and the table have 8 bits, else int64.

    Raises:
        ValueError: shapes or types do not fit, or this machine does not have the path.
    """
    check_packed(x, packed, level_table)
    machine = instruction_set(path)
    # A copy where it may not be written: one compiled form serves both.
    packed = np.require(packed, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    levels = np.array(level_table)
    if len(x) == 1 and x.dtype.itemsize == level_table.dtype.itemsize == 1:
        return _row(np.ascontiguousarray(x[0]), packed, levels, machine)
    return _block(x, packed, levels, machine)


def check_packed(x: np.ndarray, packed: np.ndarray, level_table: np.ndarray) -> None:
    """Refuse what ``packed_matmul`` cannot multiply.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if x.ndim != 2 or x.dtype not in TYPES:
        message = f"the left side is int8, uint8 or int16 (rows, depth), not {x.dtype} {x.shape}"
        raise ValueError(message)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-x.shape[1] // 2):
        message = f"packed codes are uint8 (columns, {-(-x.shape[1] // 2)}), not {packed.dtype} {packed.shape}"
        raise ValueError(message)
    if level_table.shape != (16,) or level_table.dtype not in {np.dtype(np.int8), np.dtype(np.int16)}:
        message = f"a table holds 16 numbers, int8 or int16, not {level_table.dtype} {level_table.shape}"
        raise ValueError(message)


def _row(x: np.ndarray, packed: np.ndarray, levels: np.ndarray, machine: InstructionSet) -> np.ndarray:
    plan = line_plan(type(machine), x.dtype)
    columns, count = packed.shape
    steps, ragged = divmod(count, plan.span)
    padded = np.zeros((steps + bool(ragged)) * plan.span * 2, dtype=x.dtype)
    padded[: x.size] = x
    halves = np.ascontiguousarray(padded.reshape(-1, plan.span, 2).transpose(0, 2, 1))
    tails = np.zeros((columns, plan.span) if ragged else (1, 1), dtype=np.uint8)
    if ragged:
        tails[:, :ragged] = packed[:, steps * plan.span :]
    table, base = levels, np.zeros(1, dtype=np.int64)
    if not plan.right.signed:
        # 128 more in each number of the table; base takes 128 times the sum of the row away again.
        table, base = levels.view(np.uint8) ^ np.uint8(128), row_sums(x[None]) * -128
    base = base.astype(np.int32)
    out = np.empty((1, columns), dtype=np.int32)
    units = -(-columns // COLUMNS)
    addresses = (halves.ctypes.data, packed.ctypes.data, packed.strides[0], columns, steps, tails.ctypes.data)
    addresses = (*addresses, int(bool(ragged)), table.ctypes.data, base.ctypes.data, out.ctypes.data)
    arguments = (machine, x.dtype.type(0), units, *addresses)
    if columns * x.size < FEW or threads() == 1:
        _row_alone(*arguments)
    else:
        with lock:
            _row_together(*arguments, np.zeros(1, dtype=np.int64), threads())
    return out


def _block(x: np.ndarray, packed: np.ndarray, levels: np.ndarray, machine: InstructionSet) -> np.ndarray:
    plan = plan_of(type(machine), x.dtype, levels.dtype)
    rows, depth = x.shape
    columns = len(packed)
    padded = -(-packed.shape[1] * 2 // plan.span) * plan.span
    left = aligned((rows, padded), x.dtype)
    left[:, :depth] = x
    left[:, depth:] = 0
    kind = np.dtype(np.int64 if plan.wide else np.int32)
    base = (row_sums(left) * (-128 if plan.flip else 0)).astype(kind)
    out = np.empty((rows, columns), dtype=kind)
    alone = rows * columns * depth < FEW or threads() == 1
    broad = COLUMNS
    while broad > LINE and -(-columns // broad) < 4 * threads():
        broad //= 2
    # What pads a row is multiplied with zeros.
    scratch = aligned((1 if alone else threads(), broad, max(padded, 1)), levels.dtype)
    long = levels.astype(np.int16)
    table = np.concatenate([(long & 255).astype(np.uint8), (long >> 8).astype(np.int8).view(np.uint8)])
    steps, stride = padded // plan.span, padded * left.itemsize
    job = Job(
        1,
        rows,
        columns,
        steps,
        left.ctypes.data,
        stride,
        0,
        0,
        0,
        kind.itemsize,
        0,
        0,
        0,
        base.ctypes.data,
        out.ctypes.data,
    )
    units = -(-columns // broad)
    arguments = (machine, x.dtype.type(0), units, packed, levels, table.ctypes.data, scratch, job)
    if alone:
        _block_alone(*arguments)
    else:
        with lock:
            _block_together(*arguments, np.zeros(1, dtype=np.int64))
    return out

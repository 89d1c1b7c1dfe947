"""Integer matrix products with exact accumulators: int8 x int8 -> int32, int16 operands -> int64.

One row of work reads both operands as they lie in memory (``workbench.kernels.dot_tiles``); blocks of the output are dealt
to the threads. Rows on the left are kept in the second-level cache while the right side streams past them.
"""

# Compiled functions: numba infers their types, and they take addresses, not objects.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from workbench.kernels import torch_product
from workbench.kernels.dot_steps import plan_of
from workbench.kernels.dot_tiles import DEPTH, LINE, dot_line, dot_tile, tile_facts
from workbench.kernels.instruction_sets import InstructionSet, instruction_set
from workbench.kernels.runtime import kernel, lock, take, threads

#: Rows and columns of the output that a thread takes at a time.
ROWS, COLUMNS = 96, 64

#: Fewer products than these are not worth waking the other threads for.
FEW = 1 << 23


#: Types of an operand.
TYPES = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16))


class Job(NamedTuple):
    """One batch of products as addresses, strides in bytes and counts."""

    batches: int
    rows: int
    columns: int
    steps: int
    left: int
    left_stride: int
    left_batch: int
    right: int
    right_stride: int
    right_batch: int
    left_tail: int
    right_tail: int
    tail_step: int
    base: int
    out: int


@kernel()
def multiply_block(
    machine, left_kind, right_kind, job, batch, first_row, rows, first_column, columns, base, out, out_stride
):
    """Write one block of the output to ``out``; ``base`` is the address of the first row's start."""
    tall, broad, span, left_item, right_item, sum_item = tile_facts(machine, left_kind, right_kind)
    left_stride, right_stride, tail_step = job.left_stride, job.right_stride, job.tail_step
    left = job.left + batch * job.left_batch + first_row * left_stride
    right = job.right + batch * job.right_batch + first_column * right_stride
    left_tail_stride, right_tail_stride = tail_step * left_item, tail_step * right_item
    left_tail = job.left_tail + (batch * job.rows + first_row) * left_tail_stride
    right_tail = job.right_tail + (batch * job.columns + first_column) * right_tail_stride
    start = 0
    while True:
        steps = min(DEPTH, job.steps - start)
        end = start + steps >= job.steps
        tail, fresh = tail_step if end else 0, np.int64(start == 0)
        if rows == 1:
            for j in range(0, columns, LINE):
                dot_line(
                    machine,
                    left_kind,
                    right_kind,
                    left,
                    right + j * right_stride,
                    right_stride,
                    columns - j,
                    steps,
                    left_tail,
                    right_tail + j * right_tail_stride,
                    tail,
                    base,
                    out + j * sum_item,
                    fresh,
                )
        else:
            # Rows that stay in the first-level cache while the columns of the piece pass by.
            group = tall * max(np.int64(1), DEPTH // max(steps, np.int64(1)))
            for first in range(0, rows, group):
                beyond = min(rows, first + group)
                for j in range(0, columns, broad):
                    i = first
                    while i < beyond:
                        i += dot_tile(
                            machine,
                            left_kind,
                            right_kind,
                            left + i * left_stride,
                            left_stride,
                            right + j * right_stride,
                            right_stride,
                            beyond - i,
                            columns - j,
                            steps,
                            left_tail + i * left_tail_stride,
                            right_tail + j * right_tail_stride,
                            tail,
                            base + i * sum_item,
                            out + i * out_stride + j * sum_item,
                            out_stride,
                            fresh,
                        )
        start += DEPTH
        left += DEPTH * span * left_item
        right += DEPTH * span * right_item
        if end:
            break


@kernel(inline=True)
def _unit(machine, left_kind, right_kind, job, number, tall, broad):
    """Do one piece of the output: consecutive numbers share their rows, which then stay in the cache."""
    across, down = (job.columns + broad - 1) // broad, (job.rows + tall - 1) // tall
    column, rest = number % across * broad, number // across
    row, batch = rest % down * tall, rest // down
    item = tile_facts(machine, left_kind, right_kind)[5]
    line = batch * job.rows + row
    multiply_block(
        machine,
        left_kind,
        right_kind,
        job,
        batch,
        row,
        min(tall, job.rows - row),
        column,
        min(broad, job.columns - column),
        job.base + line * item,
        job.out + (line * job.columns + column) * item,
        job.columns * item,
    )


@kernel()
def _alone(machine, left_kind, right_kind, job, units, tall, broad):
    for number in range(units):
        _unit(machine, left_kind, right_kind, job, number, tall, broad)


@kernel(parallel=True)
def _together(machine, left_kind, right_kind, job, units, tall, broad, counter, workers):
    for _ in prange(workers):
        number = take(counter)
        while number < units:
            _unit(machine, left_kind, right_kind, job, number, tall, broad)
            number = take(counter)


@kernel()
def _row_sums(rows, out):
    for row in range(rows.shape[0]):
        total = np.int64(0)
        for k in range(rows.shape[1]):
            total += rows[row, k]
        out[row] = total


def row_sums(rows: np.ndarray) -> np.ndarray:
    """Return the int64 sums over the last axis of integers (..., depth)."""
    out = np.empty(rows.shape[:-1], dtype=np.int64)
    _row_sums(np.ascontiguousarray(rows).reshape(out.size, rows.shape[-1]), out.reshape(-1))
    return out


class Operands:
    """Two stacks of rows made ready for the kernels: addresses, zero-padded ends, and where the sums start.

    Args:
        left: int8, uint8 or int16 (batches, rows, depth), the depth contiguous in memory.
        right: the same types (batches, columns, depth).
        machine: tag of the instruction set.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, machine: InstructionSet) -> None:
        plan = plan_of(type(machine), left.dtype, right.dtype)
        if left.shape[1] > 1 and right.shape[1] >= COLUMNS:
            left = _at_cache_lines(left)
        self.machine, self.left_kind, self.right_kind = machine, left.dtype.type(0), right.dtype.type(0)
        self.dtype = np.dtype(np.int64 if plan.wide else np.int32)
        batches, rows, depth = left.shape
        steps, ragged = divmod(depth, plan.span)
        # The instruction takes the right side with its sign bit turned over: 128 too much or too little, times each left.
        self.base = np.zeros((batches, rows), dtype=self.dtype)
        if plan.flip:
            turned = -128 if self.right_kind.dtype.kind == "i" else 128
            self.base += (row_sums(left) * turned).astype(self.dtype)
        tails = [_ends(side, steps * plan.span, plan.span) if ragged else _NOTHING for side in (left, right)]
        self.kept = (left, right, *tails)
        self.job = Job(
            batches,
            rows,
            right.shape[1],
            steps,
            left.ctypes.data,
            left.strides[1],
            left.strides[0],
            right.ctypes.data,
            right.strides[1],
            right.strides[0],
            tails[0].ctypes.data,
            tails[1].ctypes.data,
            plan.span if ragged else 0,
            self.base.ctypes.data,
            0,
        )

    @property
    def products(self) -> int:
        """Return how many products of two elements there are."""
        return self.job.batches * self.job.rows * self.job.columns * self.kept[0].shape[-1]

    def into(self, out: np.ndarray) -> Job:
        """Return the job with the address of its C-ordered output."""
        return self.job._replace(out=out.ctypes.data)


_NOTHING = np.zeros(1, dtype=np.int8)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialized C-ordered array that begins at a cache line."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(size + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def _at_cache_lines(side: np.ndarray) -> np.ndarray:
    """Return rows that begin at cache lines: each is read many times, and what crosses a line is read twice."""
    if not (side.ctypes.data | side.strides[1]) % 64 or not side.size:
        return side
    per_line = 64 // side.itemsize
    room = aligned((*side.shape[:2], -(-side.shape[2] // per_line) * per_line), side.dtype)
    room[:, :, : side.shape[2]] = side
    return room[:, :, : side.shape[2]]


def _ends(side: np.ndarray, start: int, span: int) -> np.ndarray:
    """Return the last elements of each row, from ``start`` on, padded with zeros."""
    ends = np.zeros((*side.shape[:2], span), dtype=side.dtype)
    ends[:, :, : side.shape[2] - start] = side[:, :, start:]
    return ends


def _by_tiles(left: np.ndarray, right: np.ndarray, machine: InstructionSet) -> np.ndarray:
    operands = Operands(left, right, machine)
    job = operands.job
    out = np.empty((job.batches, job.rows, job.columns), dtype=operands.dtype)
    tall, broad = pieces(job, threads())
    units = job.batches * -(-job.rows // tall) * -(-job.columns // broad)
    kinds = (machine, operands.left_kind, operands.right_kind)
    if operands.products < FEW or threads() == 1:
        _alone(*kinds, operands.into(out), units, tall, broad)
    else:
        with lock:
            _together(*kinds, operands.into(out), units, tall, broad, np.zeros(1, dtype=np.int64), threads())
    return out


def pieces(job: Job, workers: int) -> tuple[int, int]:
    """Return rows and columns of the pieces of output that are dealt: fewer where the threads would wait for one."""
    broad = COLUMNS
    while broad > LINE and job.batches * -(-job.rows // ROWS) * -(-job.columns // broad) < 4 * workers:
        broad //= 2
    return ROWS, broad


def integer_matmul(left: np.ndarray, right: np.ndarray, path: str | None = None) -> np.ndarray:
    """Return ``left @ right.T`` in integers, exact modulo the accumulator's width.

    Args:
        left: int8, uint8 or int16 (rows, depth).
        right: int8, uint8 or int16 (columns, depth).
        path: ``"torch"`` or an instruction set's name (``workbench.kernels.instruction_sets``); by default the fastest.

    Returns:
        int32 (rows, columns) where both sides have 8 bits, else int64.

    Raises:
        ValueError: shapes or types do not fit, or this machine does not have the path.
    """
    if left.ndim != 2 or right.ndim != 2:
        message = f"two matrices are multiplied, not {left.shape} and {right.shape}"
        raise ValueError(message)
    return integer_matmul_batched(left[None], right[None], path)[0]


def integer_matmul_batched(left: np.ndarray, right: np.ndarray, path: str | None = None) -> np.ndarray:
    """Return ``left[b] @ right[b].T`` for each b in integers, exact modulo the accumulator's width.

    Args:
        left: int8, uint8 or int16 (batches, rows, depth); a broadcast first axis is read in place.
        right: int8, uint8 or int16 (batches, columns, depth); likewise.
        path: see ``integer_matmul``.

    Returns:
        int32 (batches, rows, columns) where both sides have 8 bits, else int64.

    Raises:
        ValueError: shapes or types do not fit, or this machine does not have the path.
    """
    left, right = ready(left, right)
    if path == "torch":
        return torch_product.multiply(left, right)
    if path is None and torch_product.is_candidate(left, right):
        return torch_product.faster(left, right, lambda: _by_tiles(left, right, instruction_set()))
    return _by_tiles(left, right, instruction_set(path))


def ready(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both operands with the depth contiguous.

    Raises:
        ValueError: shapes or types do not fit.
    """
    for side in (left, right):
        if side.dtype not in TYPES:
            message = f"operands are int8, uint8 or int16, not {side.dtype}"
            raise ValueError(message)
    if left.ndim != 3 or right.ndim != 3 or left.shape[0] != right.shape[0] or left.shape[2] != right.shape[2]:
        message = f"(batches, rows, depth) meets (batches, columns, depth), not {left.shape} and {right.shape}"
        raise ValueError(message)
    return _rows_whole(left), _rows_whole(right)


def _rows_whole(side: np.ndarray) -> np.ndarray:
    return side if side.strides[2] == side.itemsize or side.shape[2] <= 1 else np.ascontiguousarray(side)

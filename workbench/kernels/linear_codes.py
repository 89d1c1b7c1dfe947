"""A layer from codes to codes: each block of sums is requantized while it lies in the cache, and never stored whole."""

# Compiled functions: numba infers their types, and they take addresses and arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.instruction_sets import instruction_set
from workbench.kernels.integer_gemm import COLUMNS, FEW, Job, Operands, multiply_block, pieces, ready, row_sums
from workbench.kernels.requantize import per_line
from workbench.kernels.requantize_line import requantize_line
from workbench.kernels.runtime import kernel, lock, take, threads

#: Bytes of the right side that a piece takes at most: what the second-level cache holds beside the left one.
RIGHT_SIDE = 1 << 18


@kernel()
def _unit(
    machine, left_kind, right_kind, job, number, scratch, row_part, zeros, offset, factors, shifts, numbers, out, counts
):
    tall, broad = scratch.shape[0], scratch.shape[1]
    across, down = (job.columns + broad - 1) // broad, (job.rows + tall - 1) // tall
    column, rest = number % across * broad, number // across
    row, batch = rest % down * tall, rest // down
    rows, columns = min(tall, job.rows - row), min(broad, job.columns - column)
    item = scratch.itemsize
    base = job.base + (batch * job.rows + row) * item
    address = scratch.ctypes.data
    multiply_block(machine, left_kind, right_kind, job, batch, row, rows, column, columns, base, address, broad * item)
    rule, zero_point, low, high, floor, ceiling = numbers  # pyright: ignore[reportGeneralTypeIssues]
    end = column + columns
    added = offset[batch if offset.shape[0] > 1 else 0, column:end]
    own_zeros, own_factors, own_shifts = zeros[column:end], factors[column:end], shifts[column:end]
    for i in range(rows):
        line = scratch[i, :columns]
        part = np.int64(row_part[batch, row + i]) if row_part.size else np.int64(0)
        # Arithmetic modulo the accumulator's width: exact wherever the final sum fits.
        if part:
            for j in range(columns):
                line[j] += added[j] + part * own_zeros[j]
        else:
            for j in range(columns):
                line[j] += added[j]
        saturated, wrapped = requantize_line(
            line,
            own_factors,
            own_shifts,
            rule,
            zero_point,
            low,
            high,
            floor,
            ceiling,
            out[batch, row + i, column:end],
        )
        counts[0] += saturated
        counts[1] += wrapped


@kernel()
def _alone(
    machine, left_kind, right_kind, job, units, scratch, row_part, zeros, offset, factors, shifts, numbers, out, counts
):
    for number in range(units):
        _unit(
            machine,
            left_kind,
            right_kind,
            job,
            number,
            scratch[0],
            row_part,
            zeros,
            offset,
            factors,
            shifts,
            numbers,
            out,
            counts[0],
        )


@kernel(parallel=True)
def _together(
    machine,
    left_kind,
    right_kind,
    job,
    units,
    scratch,
    row_part,
    zeros,
    offset,
    factors,
    shifts,
    numbers,
    out,
    counts,
    counter,
):
    for worker in prange(scratch.shape[0]):
        number = take(counter)
        while number < units:
            _unit(
                machine,
                left_kind,
                right_kind,
                job,
                number,
                scratch[worker],
                row_part,
                zeros,
                offset,
                factors,
                shifts,
                numbers,
                out,
                counts[worker],
            )
            number = take(counter)


def _pieces(job: Job, item: int) -> tuple[int, int]:
    """Return rows and columns of a piece: long lines of sums, in half of the first-level cache where depths are small."""
    tall, broad = pieces(job, threads())
    depth = max(job.right_stride, 1)
    while broad == COLUMNS or (COLUMNS < broad < 4 * COLUMNS):
        longer = 2 * broad
        if longer > 4 * COLUMNS or longer * depth > RIGHT_SIDE or job.rows * job.columns < 32 * longer * threads():
            break
        broad = longer
    return max(12, tall * COLUMNS * 4 // (broad * item) // 12 * 12), broad


def linear_codes(
    x: np.ndarray,
    weight: np.ndarray,
    offset: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    rule: int,
    zero_point: int,
    low: int,
    high: int,
    dtype: np.dtype,
    *,
    weight_zero: np.ndarray | None = None,
    path: str | None = None,
) -> tuple[np.ndarray, int, int]:
    """Return the codes of ``requantize_rows(x @ weight.T + offset - sum(x) * weight_zero)``, bit for bit, and its counts.

    Sums are kept modulo the accumulator's width (32 bits, 64 where an operand has 16): the caller knows that they fit.

    Args:
        x: int8, uint8 or int16 (rows, depth), or (batches, rows, depth).
        weight: the same types (columns, depth), or (batches, columns, depth).
        offset: int64 (columns,), or (batches, columns): bias and what zero points add to every row.
        multiplier: one or one per column, see ``requantize_rows``.
        shift: as many.
        rule: one of ``workbench.kernels.fixed_point``.
        zero_point: added after rounding.
        low: smallest code to give.
        high: largest code.
        dtype: integer type of the codes.
        weight_zero: int64 (columns,): zero points of the weight, whose part depends on the row.
        path: an instruction set's name; by default the fastest.

    Returns:
        codes (rows, columns) or (batches, rows, columns); how many left the dtype; how many wrapped before.

    Raises:
        ValueError: shapes or types do not fit, or this machine does not have the path.
    """
    stacked = x.ndim == 3
    left, right = ready(x if stacked else x[None], weight if stacked else weight[None])
    operands = Operands(left, right, instruction_set(path))
    job = operands.job
    out = np.empty((job.batches, job.rows, job.columns), dtype=dtype)
    # Modulo the accumulator's width, as the sums are.
    offset = np.ascontiguousarray(np.atleast_2d(offset)).astype(operands.dtype)
    if offset.shape not in {(1, job.columns), (job.batches, job.columns)}:
        message = f"an offset has one number per column ({job.columns}), not {offset.shape}"
        raise ValueError(message)
    factors, shifts = per_line(multiplier, shift, job.columns)
    turned = weight_zero is not None and bool(np.any(weight_zero))
    zeros = np.zeros(job.columns, dtype=operands.dtype)
    if turned:
        zeros += np.asarray(weight_zero).astype(operands.dtype)
    row_part = (-row_sums(left) if turned else np.empty((0, 0), dtype=np.int64)).astype(operands.dtype)
    limits = np.iinfo(dtype)
    numbers = tuple(int(value) for value in (rule, zero_point, low, high, limits.min, limits.max))
    counts = np.zeros((threads(), 2), dtype=np.int64)
    tall, broad = _pieces(job, operands.dtype.itemsize)
    units = job.batches * -(-job.rows // tall) * -(-job.columns // broad)
    alone = operands.products < FEW or threads() == 1
    scratch = np.empty((1 if alone else threads(), min(tall, max(job.rows, 1)), broad), dtype=operands.dtype)
    arguments = (operands.machine, operands.left_kind, operands.right_kind, job, units, scratch, row_part, zeros)
    arguments = (*arguments, offset, factors, shifts, numbers, out, counts)
    if alone:
        _alone(*arguments)
    else:
        with lock:
            _together(*arguments, np.zeros(1, dtype=np.int64))
    saturated, wrapped = (int(total) for total in counts.sum(axis=0))
    return out if stacked else out[0], saturated, wrapped

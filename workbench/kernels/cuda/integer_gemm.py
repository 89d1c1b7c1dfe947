"""Integer matrix products on a GPU: same names and integers as ``workbench.kernels.integer_gemm``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from workbench.kernels.cuda.dot4 import has_instruction
from workbench.kernels.cuda.products import LINE, SIDE, TILE, byte_kernels, wide_kernel
from workbench.kernels.integer_gemm import ready
from workbench.kernels.requantize import per_line

#: Up to this many rows each output has its own block of threads.
FEW_ROWS = 4


class DeviceProduct:
    """A product whose operands lie on the GPU: launch it as often as wanted, then fetch what it gave.

    Args:
        left: int8, uint8 or int16 (batches, rows, depth).
        right: the same types (batches, columns, depth); or with ``table`` uint8 (batches, columns, ceil(depth / 2)).
        table: int8 or int16 (16,): the number of each packed code.
        output: type of the codes; None keeps the sums.
        rescaling: what ``workbench.kernels.linear_codes.linear_codes`` is given after the weight: offset (batches or 1,
            columns), multiplier, shift, then rule, zero point, low, high; needed with ``output``.
        weight_zero: int64 (columns,).
        plain: multiply bytes one by one even where the GPU has an instruction for four.
    """

    def __init__(
        self,
        left: np.ndarray,
        right: np.ndarray,
        *,
        table: np.ndarray | None = None,
        output: Any = None,
        rescaling: tuple[Any, ...] | None = None,
        weight_zero: np.ndarray | None = None,
        plain: bool = False,
    ) -> None:
        right_kind = right.dtype if table is None else table.dtype
        batches, rows, columns = left.shape[0], left.shape[1], right.shape[1]
        wide = left.dtype.itemsize > 1 or right_kind.itemsize > 1
        self.shape = (batches, rows, columns)
        self.dtype = np.dtype(output or (np.int64 if wide else np.int32))
        extras, factor_type = _extras(left, columns, self.dtype, rescaling, weight_zero, 64 if wide else 32)
        if wide:
            self.kernel: Any = wide_kernel(table is not None, factor_type)
            self.grid, self.threads = (-(-columns // SIDE), -(-rows // SIDE), batches), (SIDE, SIDE)
            operands = _padded(left, 2), _padded(right, 2 if table is None else 1)
        else:
            signs = left.dtype.kind == "i", right_kind.kind == "i"
            plain = plain or not has_instruction()
            tiles, line = byte_kernels(*signs, packed=table is not None, factor_type=factor_type, plain=plain)
            few = rows <= FEW_ROWS
            self.kernel = line if few else tiles
            self.grid = (columns, rows, batches) if few else (-(-columns // TILE), -(-rows // TILE), batches)
            self.threads = LINE if few else (SIDE, SIDE)
            # Four bytes are one word; their order in it is the same on both sides.
            operands = _padded(left, 4).view(np.int32), _padded(right, 4 if table is None else 2)
            if table is None:
                operands = operands[0], operands[1].view(np.int32)
        self.out: Any = None
        self.counts: Any = None
        if 0 in self.shape:
            return
        levels = np.zeros(16, np.int32) if table is None else table.astype(np.int32)
        self.arguments = [cuda.to_device(np.ascontiguousarray(each)) for each in (*operands, levels, *extras)]
        kind: Any = self.dtype
        self.out = cuda.device_array(self.shape, dtype=kind)
        self.counts = cuda.to_device(np.zeros(2, dtype=np.int64))

    def launch(self) -> DeviceProduct:
        """Run the kernel; it may still be running when this returns."""
        if self.out is not None:
            self.kernel[self.grid, self.threads](*self.arguments, self.out, self.counts)
        return self

    def result(self) -> np.ndarray:
        """Return the sums or codes (batches, rows, columns)."""
        return np.zeros(self.shape, dtype=self.dtype) if self.out is None else self.out.copy_to_host()

    def events(self) -> tuple[int, int]:
        """Return how many codes left their type, and how many sums wrapped while they were rescaled, in all launches."""
        saturated, wrapped = (0, 0) if self.counts is None else self.counts.copy_to_host()
        return int(saturated), int(wrapped)


def _extras(  # noqa: PLR0917
    left: np.ndarray,
    columns: int,
    dtype: np.dtype,
    rescaling: tuple[Any, ...] | None,
    weight_zero: np.ndarray | None,
    bits: int,
) -> tuple[tuple[np.ndarray, ...], str | None]:
    """Return what a kernel needs to make codes of sums, and the type of the factors; dummies where it keeps the sums."""
    one = np.zeros(1, dtype=np.int64)
    if rescaling is None:
        return (one[None], one[None], one, one, one, one), None
    offset, multiplier, shift, *numbers = rescaling
    offset = np.ascontiguousarray(np.atleast_2d(offset), dtype=np.int64)
    if offset.shape not in {(1, columns), (left.shape[0], columns)}:
        message = f"an offset has one number per column ({columns}), not {offset.shape}"
        raise ValueError(message)
    factors, shifts = per_line(multiplier, shift, columns)
    zeros = np.zeros(columns, dtype=np.int64)
    row_part = np.zeros(left.shape[:2], dtype=np.int64)
    if weight_zero is not None:
        zeros += weight_zero
        row_part -= left.sum(axis=2, dtype=np.int64)
    limits = np.iinfo(dtype)
    chosen = np.array([*numbers, limits.min, limits.max, bits], dtype=np.int64)
    return (offset, row_part, zeros, factors, shifts, chosen), factors.dtype.name


def _padded(side: np.ndarray, multiple: int) -> np.ndarray:
    """Return rows filled with zeros up to a multiple of some elements, at least one such piece."""
    depth = max(-(-side.shape[2] // multiple), 1) * multiple
    whole = np.zeros((*side.shape[:2], depth), dtype=side.dtype)
    whole[:, :, : side.shape[2]] = side
    return whole


def integer_matmul(left: np.ndarray, right: np.ndarray, *, plain: bool = False) -> np.ndarray:
    """Return ``left @ right.T`` in integers, as ``workbench.kernels.integer_gemm.integer_matmul`` does.

    Args:
        left: int8, uint8 or int16 (rows, depth).
        right: the same types (columns, depth).
        plain: see ``DeviceProduct``.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if left.ndim != 2 or right.ndim != 2:
        message = f"two matrices are multiplied, not {left.shape} and {right.shape}"
        raise ValueError(message)
    return integer_matmul_batched(left[None], right[None], plain=plain)[0]


def integer_matmul_batched(left: np.ndarray, right: np.ndarray, *, plain: bool = False) -> np.ndarray:
    """Return ``left[b] @ right[b].T`` for each b in integers.

    Args:
        left: int8, uint8 or int16 (batches, rows, depth).
        right: the same types (batches, columns, depth).
        plain: see ``DeviceProduct``.

    Raises:
        ValueError: shapes or types do not fit.
    """
    return DeviceProduct(*ready(left, right), plain=plain).launch().result()

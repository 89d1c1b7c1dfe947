"""Packed codes and their scales: what all formats of quantized weights are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np

from workbench.checkpoints.assemble import Entry
from workbench.checkpoints.dtypes import FLOAT32
from workbench.checkpoints.layer import Weights
from workbench.checkpoints.tensors import StoredTensor, digest
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from jaxtyping import Float, Integer

_E2M1_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
E2M1 = np.concatenate([_E2M1_MAGNITUDES, -_E2M1_MAGNITUDES])
"""The 16 values of OCP FP4 E2M1 by code (OCP Microscaling Formats v1.0, table 5)."""
_E2M3_MAGNITUDES = np.array(
    [m / 8 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(3) for m in range(8)], dtype=np.float32
)
E2M3 = np.concatenate([_E2M3_MAGNITUDES, -_E2M3_MAGNITUDES])
"""The 64 values of OCP FP6 E2M3 by code (OCP Microscaling Formats v1.0, table 4)."""


def unpack(packed: Integer[np.ndarray, "rows words"], bits: int, count: int) -> Integer[np.ndarray, "rows count"]:
    """Unpack a dense little-endian bit stream along each row: code ``i`` starts at bit ``i * bits``.

    Arguments:
        packed: bytes or 32-bit words.
        bits: bits of a code, 1 to 8.
        count: codes to take from each row.
    """
    stream = np.ascontiguousarray(packed).view(np.uint8)
    rows = stream.shape[0]
    if bits == 8:
        return stream[:, :count]
    if bits in {1, 2, 4}:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (stream[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
        return codes.reshape(rows, stream.shape[1] * len(shifts))[:, :count]
    flags = np.unpackbits(stream, axis=1, count=count * bits, bitorder="little").reshape(rows, count, bits)
    return np.packbits(flags, axis=2, bitorder="little")[:, :, 0]


def packed_words(count: int, bits: int, word: int = 32) -> int:
    """How many words a dense stream of codes takes."""
    return ceil(count * bits / word)


@dataclass(frozen=True, eq=False)
class BlockScale:
    """Scales of rectangular blocks of a matrix, or of each matrix of a stack.

    Scale (r, c) belongs to rows ``r * block_rows ...`` and columns ``c * block_columns ...`` of its matrix.
    """

    tensor: StoredTensor
    matrix: tuple[int, int]
    """Rows and columns of one matrix."""
    block: tuple[int, int]
    convert: Callable[[np.ndarray], np.ndarray] = partial(np.asarray, dtype=np.float32)  # noqa: RUF009 - a pure function
    """Turns stored scales into float32 factors."""
    column_groups: StoredTensor | None = None
    """Group of each column, where a group's columns do not lie together (activation order)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the scales of one matrix."""
        return (ceil(self.matrix[0] / self.block[0]), ceil(self.matrix[1] / self.block[1]))

    def check(self, stack: int, name: str) -> None:
        """Check the number of scales.

        Raises:
            CheckpointError: there are more or fewer than the blocks need.
        """
        due = stack * prod(self.grid)
        if self.tensor.size != due:
            message = (
                f"layer {name!r} of {self.matrix[0]}x{self.matrix[1]} weights in blocks of {self.block[0]}x{self.block[1]} "
                f"needs {due} scales, but {self.tensor.name!r} holds {self.tensor.size}"
            )
            raise CheckpointError(message)

    def rows(self, start: int, stop: int) -> Float[np.ndarray, "rows columns_or_1"]:
        """Return the factor of each weight of rows ``start`` to ``stop`` of the stack."""
        height, width = self.grid
        which, inside = np.divmod(np.arange(start, stop), self.matrix[0])
        lines = which * height + inside // self.block[0]
        low, high = (int(lines[0]), int(lines[-1]) + 1) if len(lines) else (0, 0)
        stored = self.tensor.elements(low * width, high * width).reshape(-1, width)
        factors = self.convert(stored)[lines - low]
        if self.column_groups is not None:
            return factors[:, self.column_groups.read()]
        if width == 1:
            return factors
        return np.repeat(factors, self.block[1], axis=1)[:, : self.matrix[1]]


def power_of_two(stored: np.ndarray) -> np.ndarray:
    """Turn E8M0 codes (uint8, exponent + 127) into float32 factors; code 255 is NaN (OCP MX v1.0, section 5.4.1)."""
    codes = stored.view(np.uint8).astype(np.int32)
    return np.where(codes == 255, np.float32(np.nan), np.ldexp(np.float32(1), codes - 127)).astype(np.float32)


def scale_reader(tensor: StoredTensor) -> Callable[[np.ndarray], np.ndarray]:
    """Return the conversion for a scale tensor: E8M0 where it is stored as bytes, else a cast to float32."""
    if tensor.dtype == np.uint8 or tensor.dtype.name == "float8_e8m0fnu":
        return power_of_two
    return partial(np.asarray, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class ScaledRows(Weights):
    """Weights that are (code - zero) * scale, decoded to float32 by rows."""

    shape: tuple[int, int]
    codes: Callable[[int, int], np.ndarray]
    """Codes or stored numbers of rows ``start`` to ``stop``: (rows, columns)."""
    scale: BlockScale
    zero: Callable[[int, int], np.ndarray] | None = None
    """Zero points of rows ``start`` to ``stop``: (rows, columns or 1)."""
    factor: StoredTensor | None = None
    """One more number that all scales are multiplied by."""
    divide: bool = False
    """The scales are divided by ``factor`` instead."""
    dtype: np.dtype = FLOAT32

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Decode rows ``start`` to ``stop``."""
        if stop == start or 0 in self.shape:
            return np.empty((stop - start, self.shape[1]), dtype=np.float32)
        values = self.codes(start, stop).astype(np.float32)
        if self.zero is not None:
            values -= self.zero(start, stop).astype(np.float32)
        scale = self.scale.rows(start, stop)
        if self.factor is not None:
            factor = self.factor.read().reshape(-1).astype(np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):  # a global scale of 0 shows as inf, not as a warning
                scale = scale / factor if self.divide else scale * factor
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(values * scale)


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """Numbers stored one by one (int8, float8), by rows."""

    tensor: StoredTensor
    columns: int

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``start`` to ``stop``."""
        return self.tensor.elements(start * self.columns, stop * self.columns).reshape(-1, self.columns)


@dataclass(frozen=True, eq=False)
class PackedCodes:
    """Codes packed along the rows of a tensor of bytes or words."""

    tensor: StoredTensor
    width: int
    """Bytes or words in a row."""
    bits: int
    columns: int
    table: np.ndarray | None = None
    """The number that each code stands for; None for the code itself less ``offset``."""
    offset: int = 0

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Read and unpack rows ``start`` to ``stop``."""
        packed = self.tensor.elements(start * self.width, stop * self.width).reshape(-1, self.width)
        codes = unpack(packed, self.bits, self.columns)
        return codes.astype(np.int16) - self.offset if self.table is None else self.table[codes]


def composed(name: str, weights: Weights, shape: tuple[int, ...], dtype: str, parts: list[StoredTensor]) -> Entry:
    """Make an entry of a view on several tensors; its content key covers all of them."""
    if any(part.volatile for part in parts):
        return Entry(name, weights, shape, dtype, partial(_joint_key, parts, dtype))
    return Entry(name, weights, shape, dtype, _joint_key(parts, dtype))


def _joint_key(parts: list[StoredTensor], dtype: str) -> str:
    return digest(dtype, *[part.content_key for part in parts])

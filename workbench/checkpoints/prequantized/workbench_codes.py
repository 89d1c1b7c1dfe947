"""Dense packing of codes of 1 to 16 bits, and how stored scales become full scales: shared by writer and reader."""

from __future__ import annotations

from math import ceil

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int, UInt8

from workbench.checkpoints.prequantized.codes import power_of_two, unpack

#: What a stored scale is in the file, by the name of its format; ``full`` is the float32 full scale itself.
SCALE_DTYPES: dict[str, np.dtype] = {
    "full": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "e8m0": np.dtype(np.uint8),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
}


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes a dense stream of codes takes."""
    return ceil(count * bits / 8)


def pack_rows(codes: Int[np.ndarray, "rows columns"], bits: int) -> UInt8[np.ndarray, "rows bytes"]:
    """Pack codes along each row: code ``i`` takes the bits from ``i * bits`` on, lowest bit first; rows end on a byte.

    Negative codes are two's complement of ``bits`` bits.

    >>> pack_rows(np.array([[1, -1, 3]]), 4).tolist()
    [[241, 3]]
    """
    rows, columns = codes.shape
    if bits in {8, 16}:
        wide = (codes.astype(np.int64) & ((1 << bits) - 1)).astype("<u2" if bits == 16 else np.uint8)
        return np.ascontiguousarray(wide).view(np.uint8).reshape(rows, columns * bits // 8)
    packed = np.empty((rows, packed_bytes(columns, bits)), dtype=np.uint8)
    step = max(1, (1 << 20) // max(1, columns))
    for start in range(0, rows, step):
        part = (codes[start : start + step].astype(np.int64) & ((1 << bits) - 1)).astype("<u2")
        flags = np.unpackbits(part.view(np.uint8).reshape(*part.shape, 2), axis=2, bitorder="little")[:, :, :bits]
        packed[start : start + step] = np.packbits(flags.reshape(len(part), -1), axis=1, bitorder="little")
    return packed


def unpack_rows(
    packed: UInt8[np.ndarray, "rows bytes"], bits: int, columns: int, *, signed: bool
) -> Int[np.ndarray, "rows columns"]:
    """Undo ``pack_rows``; int32.

    >>> unpack_rows(np.array([[241, 3]], dtype=np.uint8), 4, 3, signed=True).tolist()
    [[1, -1, 3]]
    """
    if bits <= 8:
        codes = unpack(packed, bits, columns).astype(np.int32)
    elif bits == 16:
        codes = np.ascontiguousarray(packed).view("<u2")[:, :columns].astype(np.int32)
    else:
        flags = np.unpackbits(np.ascontiguousarray(packed), axis=1, count=columns * bits, bitorder="little")
        wide = np.packbits(flags.reshape(len(packed), columns, bits), axis=2, bitorder="little")
        codes = wide[:, :, 0].astype(np.int32) | wide[:, :, 1].astype(np.int32) << 8
    if signed:
        codes = np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    return codes


def full_scales(
    stored: np.ndarray, scale_format: str, units: float, tensor_scale: float | None
) -> Float[np.ndarray, "rows groups"]:
    """Return the full scales, float32, that stored scales stand for.

    Args:
        stored: in the format's type.
        scale_format: a key of ``SCALE_DTYPES``.
        units: how many stored units make the full scale (7 for a narrow 4-bit uniform grid, 6 for e2m1).
        tensor_scale: NVFP4's second level; None elsewhere.
    """
    if scale_format == "full":
        return stored.astype(np.float32)
    if scale_format == "e8m0":
        return (power_of_two(stored).astype(np.float64) * units).astype(np.float32)
    wide = stored.astype(np.float64)
    if tensor_scale is not None:
        wide = wide * float(tensor_scale)
    return (wide * units).astype(np.float32)

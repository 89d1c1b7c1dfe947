"""Weights of 4 bits, two codes per byte, on a GPU: same names and integers as ``workbench.kernels.packed``."""

from __future__ import annotations

import numpy as np

from workbench.kernels.cuda.integer_gemm import DeviceProduct
from workbench.kernels.packed import check_packed, pack_nibbles, unpack_nibbles

__all__ = ["pack_nibbles", "packed_matmul", "unpack_nibbles"]


def packed_matmul(x: np.ndarray, packed: np.ndarray, level_table: np.ndarray, *, plain: bool = False) -> np.ndarray:
    """Return ``x @ level_table[unpack_nibbles(packed, depth)].T``.

    Args:
        x: int8, uint8 or int16 (rows, depth).
        packed: uint8 (columns, ceil(depth / 2)).
        level_table: int8 or int16 (16,): the number that each code stands for.
        plain: see ``DeviceProduct``.

    Returns:
        int32 (rows, columns) where both x and the table have 8 bits, else int64.

    Raises:
        ValueError: shapes or types do not fit.
    """
    check_packed(x, packed, level_table)
    return DeviceProduct(x[None], packed[None], table=level_table, plain=plain).launch().result()[0]

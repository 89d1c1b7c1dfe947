"""Sums of products that are looked up instead of multiplied: one table entry for each pair of levels."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel


@kernel(parallel=True)
def _sum_products(left, right, table, out):
    rows, depth = left.shape
    for row in prange(rows):
        for column in range(right.shape[0]):
            total = np.int64(0)
            for k in range(depth):
                total += table[right[column, k], left[row, k]]
            out[row, column] = total


@exclusive
def sum_products(left: np.ndarray, right: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return ``sum_k table[right[n, k], left[m, k]]`` as int64 (m, n).

    Args:
        left: level indices (rows, depth), int32, within the table's columns.
        right: level indices (columns, depth), int32, within the table's rows.
        table: int64 (levels of right, levels of left).
    """
    out = np.empty((left.shape[0], right.shape[0]), dtype=np.int64)
    _sum_products(np.ascontiguousarray(left), np.ascontiguousarray(right), table, out)
    return out

"""Float64 moments of stored weights, over everything, over rows and over columns, in one pass."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from workbench.kernels.codes import as_codes, value
from workbench.kernels.runtime import SUMS, exclusive, kernel, threads

_BLOCK = 1024
_PARTS = 32


@kernel(fastmath=SUMS)
def _powers(codes, centre, sums):
    """Add one row's powers (w - centre)^1 ... ^4 and its zeros; return nothing."""
    s1 = 0.0
    s2 = 0.0
    s3 = 0.0
    s4 = 0.0
    zeros = 0
    for j in range(codes.shape[0]):
        w = np.float64(value(codes[j]))
        zeros += w == 0.0
        x = w - centre
        square = x * x
        s1 += x
        s2 += square
        s3 += square * x
        s4 += square * square
    sums[0] = s1
    sums[1] = s2
    sums[2] = s3
    sums[3] = s4
    sums[4] = zeros


@kernel()
def _columns(codes, centre, columns):
    """Add one row to every column's powers and extremes."""
    for j in range(codes.shape[0]):
        w = np.float64(value(codes[j]))
        x = w - centre
        square = x * x
        columns[0, j] += x
        columns[1, j] += square
        columns[2, j] += square * x
        columns[3, j] += square * square
        columns[4, j] = min(columns[4, j], w)
        columns[5, j] = max(columns[5, j], w)


@kernel(parallel=True)
def _moments(codes, centre, rows, columns):
    count = codes.shape[0]
    parts = min(count, _PARTS)
    for part in prange(parts):
        mine = columns[get_thread_id()]
        for row in range(count * part // parts, count * (part + 1) // parts):
            _powers(codes[row], centre, rows[row])
            _columns(codes[row], centre, mine)


@exclusive
def power_sums(
    rows: np.ndarray, centre: float, columns: Float[np.ndarray, "threads 6 columns"]
) -> Float[np.ndarray, "rows 5"]:
    """Return each row's sums of (w - centre)^k, k = 1 ... 4, and its zeros; add each column's to ``columns``.

    Args:
        rows: weights (rows, columns) as stored.
        centre: subtracted first, so that central moments do not cancel; any number near the mean.
        columns: from ``new_columns``.
    """
    codes = as_codes(rows)
    sums = np.empty((codes.shape[0], 5))
    _moments(codes, centre, sums, columns)
    return sums


def new_columns(columns: int) -> Float[np.ndarray, "threads 6 columns"]:
    """Return what ``power_sums`` adds columns to: for each thread, sums of four powers, smallest and largest weight."""
    empty = np.zeros((threads(), 6, columns))
    empty[:, 4] = np.inf
    empty[:, 5] = -np.inf
    return empty


def gather_columns(columns: Float[np.ndarray, "threads 6 columns"]) -> Float[np.ndarray, "6 columns"]:
    """Put the threads' column sums together."""
    return np.concatenate([columns[:, :4].sum(axis=0), [columns[:, 4].min(axis=0)], [columns[:, 5].max(axis=0)]])


@kernel(fastmath=SUMS)
def _energy(codes):
    total = 0.0
    for i in range(codes.shape[0]):
        row = 0.0
        for j in range(codes.shape[1]):
            w = np.float64(value(codes[i, j]))
            row += w * w
        total += row
    return total


def energy(rows: np.ndarray) -> float:
    """Return the sum of w^2, in float64."""
    return float(_energy(as_codes(rows)))


@kernel(parallel=True)
def _histogram(codes, edges, counts):
    rows = codes.shape[0]
    parts = min(rows, _PARTS)
    last = edges.shape[0] - 1
    half = 1
    while 2 * half < edges.shape[0]:
        half *= 2
    for part in prange(parts):
        mine = counts[get_thread_id()]
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            some = codes[row]
            for j in range(some.shape[0]):
                w = np.float64(value(some[j]))
                if edges[0] <= w <= edges[last]:
                    # The number of edges <= w, by halves and without a branch that weights would make unforeseeable.
                    low = np.uint32(0)
                    step = np.uint32(half)
                    while step > np.uint32(0):
                        tried = np.uint32(low + step)
                        fits = tried <= np.uint32(last) and w >= edges[min(tried, np.uint32(last))]
                        low = np.uint32(low + step * np.uint32(fits))
                        step = np.uint32(step >> np.uint32(1))
                    mine[min(low, np.uint32(last - 1))] += 1


@exclusive
def histogram_counts(rows: np.ndarray, edges: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " bins"]:
    """Count weights between edges (ascending), the last bin closed on both sides; what lies outside is not counted."""
    counts = np.zeros((threads(), len(edges) - 1))
    _histogram(as_codes(rows), edges, counts)
    return counts.sum(axis=0)


@kernel(parallel=True)
def _shrink(codes, first, rows, picture):
    height, width = picture.shape
    columns = codes.shape[1]
    top = first * height // rows
    bottom = (first + codes.shape[0] - 1) * height // rows
    for line in prange(top, bottom + 1):
        # Rows whose cell is this line: ceil(line * rows / height) up to the next line's first.
        start = max(first, (line * rows + height - 1) // height)
        stop = min(first + codes.shape[0], ((line + 1) * rows + height - 1) // height)
        for row in range(start, stop):
            for cell in range(width):
                left = (cell * columns + width - 1) // width
                right = ((cell + 1) * columns + width - 1) // width
                extreme = picture[line, cell]
                for j in range(left, right):
                    w = np.float32(value(codes[row - first, j]))
                    if abs(w) > abs(extreme):
                        extreme = w
                picture[line, cell] = extreme


@exclusive
def shrink_rows(rows: np.ndarray, first: int, total: int, picture: Float[np.ndarray, "height width"]) -> None:
    """Enter some rows into a picture of the matrix: each cell keeps the weight of largest magnitude, with its sign.

    Args:
        rows: weights as stored, rows ``first`` and following of a matrix with ``total`` rows.
        first: number of the first row.
        total: rows of the whole matrix, at least the picture's height.
        picture: float32, zeros at first, no wider than the matrix.
    """
    _shrink(as_codes(rows), first, total, picture)

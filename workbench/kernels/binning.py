"""The sketch's one pass: every weight's place on the grid's axis falls into a bin that keeps moments.

Two layouts of bins. *Logarithmic*, for grids around zero: sign, 24 octaves below 1 (and two above), at least 10
mantissa bits, read off the bit pattern of float32(u); the two topmost octaves below 1 take one and two bits more, so
that bins there are no wider than 2^-13, a sixty-fourth of an 8-bit step. *Linear*, for ``range`` grids on [0, 1], whose
weights crowd in the middle: bins of 2^-15.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numba import prange

from workbench.kernels.codes import as_codes, bits_of, value
from workbench.kernels.moment_cells import add_moments
from workbench.kernels.runtime import exclusive, kernel, take, threads

#: Mantissa bits of a bin in most octaves.
MANTISSA_BITS = 10

#: Biased float32 exponents of the lowest and highest octave: [2^-24, 2^-23) and [2, 4).
_LOWEST, _HIGHEST = 127 - 24, 127 + 1

#: Linear bins to the unit, and the first one's left border.
LINEAR_BINS, LINEAR_START = 1 << 15, -0.5

_BLOCK = 512
_PARTS = 64


#: Bins of one octave; octaves below 1/2; bins before [1/2, 1), before [1, 2), and of one sign.
_OCTAVE = 1 << MANTISSA_BITS
_QUARTER, _HALF_UNIT, _UNIT = (1 + _OCTAVE * octaves for octaves in (22, 24, 28))
_HALF = _UNIT + 2 * _OCTAVE


def log_borders() -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Return the least and the largest |u| of each logarithmic bin of one sign; the last one is open to infinity."""
    low = [np.zeros(1)]
    for exponent in range(_LOWEST, _HIGHEST + 1):
        count = _OCTAVE << {125: 1, 126: 2}.get(exponent, 0)
        low.append(np.ldexp(1.0 + np.arange(count) / count, exponent - 127))
    start = np.concatenate(low)
    return start, np.append(start[1:], np.inf)


@kernel()
def _places_log(codes, inverse, place, weight):
    """Find each weight's bin (times 4: where its moments begin); arithmetic without a branch, so that it vectorizes."""
    for j in range(codes.shape[0]):
        w = np.float64(value(codes[j]))
        pattern = bits_of(np.float32(w * inverse))
        magnitude = pattern & np.int32(0x7FFFFFFF)
        # Ten mantissa bits and the exponent count bins from the lowest octave on; the octaves [1/4, 1/2) and [1/2, 1)
        # keep one and two bits more.
        k = (magnitude >> np.int32(23 - MANTISSA_BITS)) - np.int32(_LOWEST * _OCTAVE - 1)
        fine = np.int32(_QUARTER) + ((magnitude - np.int32(125 << 23)) >> np.int32(22 - MANTISSA_BITS))
        finer = np.int32(_HALF_UNIT) + ((magnitude - np.int32(126 << 23)) >> np.int32(21 - MANTISSA_BITS))
        k = fine if magnitude >= np.int32(125 << 23) else k
        k = finer if magnitude >= np.int32(126 << 23) else k
        over = np.int32(_UNIT) + ((magnitude - np.int32(127 << 23)) >> np.int32(23 - MANTISSA_BITS))
        k = over if magnitude >= np.int32(127 << 23) else k
        k = min(max(k, np.int32(0)), np.int32(_HALF - 1))
        place[j] = np.int32(4) * (k + np.int32(_HALF if pattern < np.int32(0) else 0))
        weight[j] = w


@kernel()
def _bin_log(codes, scale, place, weight, bins):
    """Add one group's weights to the bins: count, s^2, s w, w^2."""
    inverse = 1.0 / scale if scale != 0.0 else 0.0
    square = scale * scale
    for begin in range(0, codes.shape[0], _BLOCK):
        count = min(_BLOCK, codes.shape[0] - begin)
        some, there = place[:count], weight[:count]
        _places_log(codes[begin : begin + count], inverse, some, there)
        for j in range(count):
            add_moments(bins, np.int64(np.uint32(some[j])), square, scale, there[j])


@kernel()
def _bin_linear(codes, scale, offset, place, weight, bins):
    """Add one group's weights to the bins: count, s^2, s^2 u, s^2 u^2, s^2 o, s^2 o^2 with u = w / s + o."""
    inverse = 1.0 / scale if scale != 0.0 else 0.0
    square = scale * scale
    last = np.float64(2 * LINEAR_BINS - 1)
    for begin in range(0, codes.shape[0], _BLOCK):
        count = min(_BLOCK, codes.shape[0] - begin)
        some, there, these = place[:count], weight[:count], codes[begin : begin + count]
        for j in range(count):
            w = np.float64(value(these[j]))
            # Where the scale is 0 the weights decode to 0: they sit at u = 0 with no scale, only their energy counts.
            u = w * inverse + offset
            some[j] = np.int32(6) * np.int32(min(max((u - LINEAR_START) * LINEAR_BINS, 0.0), last))
            there[j] = w + scale * offset
        for j in range(count):
            k = np.uint32(some[j])
            add_moments(bins, np.int64(k), square, scale, there[j])
            bins[k + np.uint32(4)] += square * offset
            bins[k + np.uint32(5)] += square * offset * offset


@kernel(parallel=True)
def _bin_rows(codes, group, scale, offset, linear, bins, counter):
    rows, columns = codes.shape
    parts = min(rows, _PARTS)
    for worker in prange(bins.shape[0]):
        place = np.empty(_BLOCK, dtype=np.int32)
        weight = np.empty(_BLOCK)
        mine = bins[worker]
        part = take(counter)
        while part < parts:
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                at = row if scale.shape[0] > 1 else 0
                for g in range(scale.shape[1]):
                    some = codes[row, g * group : min(columns, (g + 1) * group)]
                    if linear:
                        _bin_linear(some, np.float64(scale[at, g]), offset[at, g], place, weight, mine)
                    else:
                        _bin_log(some, np.float64(scale[at, g]), place, weight, mine)
            part = take(counter)


def new_bins(*, linear: bool) -> Float[np.ndarray, "threads cells"]:
    """Return empty bins for ``bin_rows``, one set for each thread."""
    return np.zeros((threads(), 6 * 2 * LINEAR_BINS if linear else 4 * 2 * _HALF))


@exclusive
def bin_rows(
    rows: np.ndarray,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    group: int,
    bins: Float[np.ndarray, "threads cells"],
    *,
    linear: bool,
) -> None:
    """Add some rows' weights to the bins.

    Args:
        rows: finite weights (rows, columns), any floating-point dtype, as stored.
        scale: float32, one value for each row and group; one row where all rows share it.
        offset: float64, same shape (read only by linear bins).
        group: columns that share a scale.
        bins: from ``new_bins``.
        linear: which layout the bins have.
    """
    scale = np.ascontiguousarray(scale, dtype=np.float32)
    offset = np.ascontiguousarray(offset, dtype=np.float64)
    _bin_rows(as_codes(rows), group, scale, offset, linear, bins, np.zeros(1, dtype=np.int64))


def gather_bins(
    bins: Float[np.ndarray, "threads cells"], *, linear: bool
) -> tuple[Float[np.ndarray, " filled"], Float[np.ndarray, " filled"], Float[np.ndarray, "filled moments"]]:
    """Add up the threads' bins and keep the filled ones, in ascending order.

    Returns:
        Lower border, upper border, and the moments of each filled bin. Borders allow for the rounding of u to float32.
    """
    if linear:
        moments = bins.sum(axis=0).reshape(-1, 6)
        low = LINEAR_START + np.arange(len(moments)) / LINEAR_BINS
        high = low + 1.0 / LINEAR_BINS
        low, high = low - 2.0**-40, high + 2.0**-40
        low[0], high[-1] = -np.inf, np.inf
    else:
        both = bins.sum(axis=0).reshape(2, _HALF, 4)
        start, stop = log_borders()
        start, stop = start * (1.0 - 2.0**-23), stop * (1.0 + 2.0**-23)
        moments = np.concatenate([both[1, ::-1], both[0]])
        low = np.concatenate([-stop[::-1], start])
        high = np.concatenate([-start[::-1], stop])
    filled = np.flatnonzero(moments[:, 0])
    return low[filled], high[filled], moments[filled]


@kernel(parallel=True)
def _count_codes(codes, counts, counter):
    rows = codes.shape[0]
    parts = min(rows, _PARTS)
    for worker in prange(counts.shape[0]):
        a, b, c, d = counts[worker, 0], counts[worker, 1], counts[worker, 2], counts[worker, 3]
        part = take(counter)
        while part < parts:
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                some = codes[row]
                whole = some.shape[0] // 4 * 4
                # Four tables: equal neighbours would otherwise wait for each other's store.
                for j in range(0, whole, 4):
                    a[np.uint16(some[j])] += np.uint32(1)
                    b[np.uint16(some[j + 1])] += np.uint32(1)
                    c[np.uint16(some[j + 2])] += np.uint32(1)
                    d[np.uint16(some[j + 3])] += np.uint32(1)
                for j in range(whole, some.shape[0]):
                    a[np.uint16(some[j])] += np.uint32(1)
            part = take(counter)


@exclusive
def count_codes(rows: np.ndarray) -> Int[np.ndarray, "65536"]:
    """Count how often each 16-bit code (bf16 or f16) occurs in some rows."""
    counts = np.zeros((threads(), 4, 1 << 16), dtype=np.uint32)
    _count_codes(as_codes(rows), counts, np.zeros(1, dtype=np.int64))
    return counts.sum(axis=(0, 1), dtype=np.int64)

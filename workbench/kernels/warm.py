"""Compile every kernel that a first drag needs, or load it from numba's disk cache, ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

#: Stored types whose kernels are made ready; float64 layers are rare and compile when the first one comes.
DTYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.float16))


def warm_up(progress: Callable[[float], Any] | None = None) -> None:
    """Run each kernel once on a tiny layer of each stored type; meant for a background thread.

    The lock on parallel kernels is taken kernel by kernel, so that work which somebody waits for comes in between.

    Args:
        progress: called with the finished fraction, 0 to 1; may raise ``Cancelled``.
    """
    from workbench.grids.power import PowerGrid
    from workbench.grids.uniform import UniformGrid
    from workbench.kernels import binning, encode, exact, extrema, moments, query

    few, many, asymmetric = (
        PowerGrid(bits=4, exponent=0.5),
        UniformGrid(bits=8),
        UniformGrid(bits=4, range="asymmetric"),
    )
    steps: list[Callable[[], Any]] = []
    scale, offset = np.ones((2, 1), dtype=np.float32), np.zeros((2, 1))
    tiny = np.linspace(-1.0, 1.0, 32).reshape(2, 16)
    low, high = np.array([-1.0, 0.0]), np.array([-0.5, 1.0])
    cells = np.ones((2, 5))
    running = query.running_sums(cells)
    pair = np.stack([few.thresholds] * 2), np.stack([few.levels] * 2)
    steps += [
        # A grid's own arrays are read-only and clipped ones are not: two types to numba.
        lambda: query.query(low, high, cells, running, few.thresholds, few.levels, 1.0),
        lambda: query.query(low, high, cells, running, few.thresholds * 0.5, few.levels * 0.5, 1.0),
        lambda: query.query_many(low, high, cells, running, *pair, np.ones(1)),
        lambda: query.query_distinct(low, high, 1.0, 0.0, few.thresholds, few.levels),
        lambda: query.query_distinct_many(low, high, np.ones(1), np.zeros(1), *pair),
    ]
    for dtype in DTYPES:
        rows = tiny.astype(dtype)
        steps += [
            lambda rows=rows: extrema.group_extrema(rows, 16),
            lambda rows=rows: binning.bin_rows(rows, scale, offset, 16, binning.new_bins(linear=False), linear=False),
            lambda rows=rows: exact.error_sums(rows, few, scale, offset, 16),
            lambda rows=rows: exact.error_sums(rows, many, scale, offset, 16),
            lambda rows=rows: exact.candidate_errors(rows, few, scale[None], offset[None], 16),
            lambda rows=rows: exact.candidate_errors(rows, many, scale[None], offset[None], 16),
            lambda rows=rows: moments.energy(rows),
            lambda rows=rows: moments.power_sums(rows, 0.0, moments.new_columns(16)),
            lambda rows=rows: moments.shrink_rows(rows, 0, 2, np.zeros((1, 4), dtype=np.float32)),
            lambda rows=rows: encode.encode_rows(rows, asymmetric, scale, offset, 16),
        ]
        if dtype.itemsize == 2:
            steps.append(lambda rows=rows: binning.count_codes(rows))
        else:
            steps.append(lambda rows=rows: moments.histogram_counts(rows, np.array([-1.0, 0.0, 1.0])))
    for number, step in enumerate(steps):
        step()
        if progress is not None:
            progress((number + 1) / len(steps))

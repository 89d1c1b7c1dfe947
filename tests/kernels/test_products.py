"""Sums of looked-up products against the loop they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workbench.kernels.products import sum_products


@given(st.integers(0, 5), st.integers(0, 7), st.integers(0, 30), st.integers(0, 1000))
def test_sums_are_those_of_the_table(rows, columns, depth, seed):
    generator = np.random.default_rng(seed)
    table = generator.integers(-(2**40), 2**40, (6, 9))
    left = generator.integers(0, 9, (rows, depth)).astype(np.int32)
    right = generator.integers(0, 6, (columns, depth)).astype(np.int32)
    found = sum_products(left, right, table)
    assert found.shape == (rows, columns) and found.dtype == np.int64
    for m in range(rows):
        for n in range(columns):
            assert found[m, n] == sum(int(table[right[n, k], left[m, k]]) for k in range(depth))

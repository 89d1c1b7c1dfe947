"""Streaming moments, histograms and pictures against numpy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_zoo import matrices

from workbench.kernels.moments import (
    energy,
    gather_columns,
    histogram_counts,
    new_columns,
    power_sums,
    shrink_rows,
)


@settings(max_examples=30)
@given(matrices(), st.sampled_from([0.0, 0.3]))
def test_power_sums_of_rows_and_columns(w, centre):
    wide = w.astype(np.float64)
    columns = new_columns(w.shape[1])
    sums = power_sums(w, centre, columns)
    gathered = gather_columns(columns)
    for k in range(4):
        powers = (wide - centre) ** (k + 1)
        scale = np.abs(powers).sum() + 1e-300
        np.testing.assert_allclose(sums[:, k], powers.sum(axis=1), atol=1e-13 * scale)
        np.testing.assert_allclose(gathered[k], powers.sum(axis=0), atol=1e-13 * scale)
    np.testing.assert_array_equal(sums[:, 4], (wide == 0.0).sum(axis=1))
    np.testing.assert_array_equal(gathered[4], wide.min(axis=0))
    np.testing.assert_array_equal(gathered[5], wide.max(axis=0))
    np.testing.assert_allclose(energy(w), (wide**2).sum(), rtol=1e-12)


@settings(max_examples=30)
@given(matrices(), st.integers(1, 40))
def test_histogram_counts_as_numpy_does(w, bins):
    wide = w.astype(np.float64)
    edges = np.histogram_bin_edges(wide, bins)
    np.testing.assert_array_equal(histogram_counts(w, edges), np.histogram(wide, edges)[0])


@settings(max_examples=30)
@given(matrices(), st.integers(1, 30), st.integers(1, 30), st.integers(1, 9))
def test_a_picture_keeps_the_largest_weight_of_each_cell(w, height, width, step):
    rows, columns = w.shape
    height, width = min(height, rows), min(width, columns)
    picture = np.zeros((height, width), dtype=np.float32)
    for start in range(0, rows, step):
        shrink_rows(w[start : start + step], start, rows, picture)
    line, cell = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    wide = w.astype(np.float64)
    for i in range(height):
        for j in range(width):
            part = wide[np.ix_(line == i, cell == j)]
            assert abs(picture[i, j]) == np.float32(np.abs(part).max())
            assert picture[i, j] in part.astype(np.float32)

"""Group extrema against numpy, group by group."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_zoo import DTYPES, matrices

from workbench.kernels.extrema import group_extrema


@given(matrices(), st.integers(1, 310))
def test_smallest_largest_and_first_extreme_of_each_group(w, group):
    low, high, peak = group_extrema(w, group)
    wide = w.astype(np.float64)
    for g in range(low.shape[1]):
        part = wide[:, g * group : (g + 1) * group]
        np.testing.assert_array_equal(low[:, g], part.min(axis=1))
        np.testing.assert_array_equal(high[:, g], part.max(axis=1))
        first = np.abs(part).argmax(axis=1)
        np.testing.assert_array_equal(peak[:, g], part[np.arange(len(part)), first])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_single_non_finite_weight_shows(dtype, bad):
    w = np.random.default_rng(0).standard_normal((3, 70)).astype(dtype)
    w[1, 41] = bad
    low, high, _ = group_extrema(w, 35)
    finite = np.isfinite(low) & np.isfinite(high)
    np.testing.assert_array_equal(finite, [[True, True], [True, False], [True, True]])

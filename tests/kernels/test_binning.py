"""Bins hold what falls between their borders, and the sums of it."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_zoo import matrices

from workbench.kernels.binning import LINEAR_BINS, bin_rows, count_codes, gather_bins, log_borders, new_bins


@settings(max_examples=40)
@given(matrices(), st.sampled_from([1, 16, 300]), st.booleans(), st.sampled_from([1.0, -1.0]))
def test_every_weight_is_in_the_bin_around_it(w, group, linear, sign):
    starts = np.arange(0, w.shape[1], group)
    wide = w.astype(np.float64)
    scale = (sign * np.maximum.reduceat(np.abs(wide), starts, axis=1)).astype(np.float32)
    offset = np.full(scale.shape, 0.25 if linear else 0.0)
    bins = new_bins(linear=linear)
    bin_rows(w, scale, offset, group, bins, linear=linear)
    low, high, moments = gather_bins(bins, linear=linear)
    assert moments[:, 0].sum() == w.size
    assert (np.diff(low) > 0).all()
    assert (np.diff(high) > 0).all()
    spread = np.repeat(scale.astype(np.float64), group, axis=1)[:, : w.shape[1]]
    shift = 0.25 if linear else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        u = np.where(spread == 0, shift, wide / spread + shift).ravel()
    s = spread.ravel()
    # Exactly one bin per weight would be too much to ask: neighbours overlap by the rounding of u to float32.
    index = np.searchsorted(high, u, side="left")
    assert (low[index] <= u).all()
    assert (u <= high[index]).all()
    np.testing.assert_allclose(moments[:, 1].sum(), (s * s).sum(), rtol=1e-12)
    np.testing.assert_allclose(moments[:, 2].sum(), (s * s * u).sum(), rtol=1e-9, atol=1e-12 * (s * s).sum())
    np.testing.assert_allclose(moments[:, 3].sum(), ((s * u) ** 2).sum(), rtol=1e-9)
    filled = moments[:, 1] > 0
    mean = moments[filled, 2] / moments[filled, 1]
    slack = 1e-12 * np.maximum(np.abs(mean), 1e-30)
    assert (low[filled] <= mean + slack).all()
    assert (mean <= high[filled] + slack).all()


def test_logarithmic_bins_have_at_least_ten_mantissa_bits_over_24_octaves():
    low, high = log_borders()
    np.testing.assert_array_equal(low[1:], high[:-1])
    assert low[0] == 0.0
    assert low[1] == 2.0**-24
    assert low[-1] < 4.0
    assert np.isinf(high[-1])
    inside = (low >= 2.0**-24) & (high <= 1.0)
    assert ((high - low)[inside] / low[inside]).max() <= 2.0**-10
    assert (high - low)[(low >= 0.125) & (high <= 1.0)].max() == 2.0**-13


def test_linear_bins_are_equal():
    w = np.linspace(0.0, 1.0, 1000, dtype=np.float32).reshape(1, -1)
    bins = new_bins(linear=True)
    bin_rows(w, np.ones((1, 1), np.float32), np.zeros((1, 1)), 1000, bins, linear=True)
    low, high, _ = gather_bins(bins, linear=True)
    np.testing.assert_allclose(high - low, 1.0 / LINEAR_BINS, rtol=1e-6)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70, 129)])
def test_codes_are_counted(dtype, shape):
    w = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.testing.assert_array_equal(count_codes(w), np.bincount(w.view(np.uint16).ravel(), minlength=1 << 16))

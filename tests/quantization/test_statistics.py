"""Statistics, largest weights, histograms, quantiles and maps against numpy and scipy."""

import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import Cancelled, QuantizationError
from workbench.quantization import histogram, largest_weights, qq_points, weight_map, weight_statistics

DTYPES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)]


def draw(seed, rows, columns, dtype, shift=0.0):
    return (np.random.default_rng(seed).standard_t(5, size=(rows, columns)) * 0.1 + shift).astype(dtype)


@settings(max_examples=30)
@given(
    st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 90), st.sampled_from(DTYPES), st.sampled_from([0.0, 1.0])
)
def test_moments_agree_with_scipy(seed, rows, columns, dtype, shift):
    w = draw(seed, rows, columns, dtype, shift)
    found = weight_statistics(w)
    wide = w.astype(np.float64)
    assert found.count == wide.size
    assert found.mean == pytest.approx(wide.mean(), abs=1e-12)
    assert found.std == pytest.approx(wide.std(), rel=1e-9)
    assert found.kurtosis == pytest.approx(scipy.stats.kurtosis(wide, axis=None, fisher=False), rel=1e-7)
    assert found.skewness == pytest.approx(scipy.stats.skew(wide, axis=None), rel=1e-7, abs=1e-7)
    assert (found.minimum, found.maximum) == (wide.min(), wide.max())
    assert found.absmax == np.abs(wide).max()
    assert found.max_over_sigma == pytest.approx(np.abs(wide).max() / wide.std(), rel=1e-9)
    assert found.zeros == (wide == 0).sum()
    for axis, channels in ((1, found.output), (0, found.input)):
        np.testing.assert_allclose(channels.mean, wide.mean(axis=axis), atol=1e-12)
        np.testing.assert_allclose(channels.std, wide.std(axis=axis), rtol=1e-7, atol=1e-12)
        np.testing.assert_array_equal(channels.absmax, np.abs(wide).max(axis=axis))
        spread = wide.std(axis=axis) > 1e-3
        expected = scipy.stats.kurtosis(wide, axis=axis, fisher=False)
        np.testing.assert_allclose(channels.kurtosis[spread], expected[spread], rtol=1e-5)
        assert len(channels.to_frame()) == wide.shape[1 - axis]


def test_equal_weights_have_no_kurtosis():
    found = weight_statistics(np.full((3, 5), 0.3, np.float32))
    assert found.std == 0.0
    assert np.isnan(found.kurtosis)
    assert np.isnan(found.max_over_sigma)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 60), st.sampled_from(DTYPES), st.integers(1, 50))
def test_the_largest_weights_and_where_they_are(seed, rows, columns, dtype, k):
    w = draw(seed, rows, columns, dtype)
    found = largest_weights(w, k)
    wide = w.astype(np.float64).ravel()
    order = np.lexsort((np.arange(wide.size), -np.abs(wide)))[:k]
    np.testing.assert_array_equal(found.values, wide[order])
    np.testing.assert_array_equal(found.rows * columns + found.columns, order)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(DTYPES), st.integers(1, 64))
def test_histograms_are_numpys(seed, dtype, bins):
    w = draw(seed, 12, 40, dtype)
    wide = w.astype(np.float64)
    found = histogram(w, bins)
    edges = np.histogram_bin_edges([], bins, (min(wide.min(), 0.0), max(wide.max(), 0.0)))
    np.testing.assert_array_equal(found.edges, edges)
    np.testing.assert_array_equal(found.counts, np.histogram(wide, edges)[0])
    given_edges = np.array([-0.1, 0.0, 0.05])
    np.testing.assert_array_equal(histogram(w, given_edges).counts, np.histogram(wide, given_edges)[0])
    logarithmic = histogram(w, 20, "log")
    assert logarithmic.counts.sum() == wide.size
    assert (np.diff(logarithmic.edges) > 0).all()


def test_quantiles_of_a_gaussian_lie_on_its_line():
    w = (np.random.default_rng(0).standard_normal((400, 500)) * 0.3 + 0.1).astype(np.float32)
    for weights, approximate in ((w, True), (w.astype(ml_dtypes.bfloat16), False)):
        found = qq_points(weights, 101)
        inner = np.abs(found.gaussian) < 2.5
        np.testing.assert_allclose(found.weights[inner], (found.mean + found.std * found.gaussian)[inner], atol=0.02)
        assert found.approximate == approximate
        assert found.mean == pytest.approx(0.1, abs=0.01)
        assert found.std == pytest.approx(0.3, abs=0.01)
        assert (np.diff(found.weights) >= 0).all()
        wide = weights.astype(np.float64)
        assert found.weights[0] == pytest.approx(wide.min(), rel=1e-3)
        assert found.weights[-1] == pytest.approx(wide.max(), rel=1e-3)


def test_maps_keep_every_outlier():
    w = np.random.default_rng(0).standard_normal((97, 203)).astype(np.float32) * 0.01
    w[41, 77] = -9.0
    found = weight_map(w, 16, 32)
    assert found.values.shape == (16, 32)
    line, cell = 41 * 16 // 97, 77 * 32 // 203
    assert found.values[line, cell] == -9.0
    rows, columns = found.cell(line, cell)
    assert 41 in rows
    assert 77 in columns
    assert sum(len(found.cell(i, 0)[0]) for i in range(16)) == 97
    assert weight_map(w, 1000, 1000).values.shape == (97, 203)


def test_refusals():
    w = np.ones((2, 3), np.float32)
    with pytest.raises(QuantizationError, match="at least 1 of the largest"):
        largest_weights(w, 0)
    with pytest.raises(QuantizationError, match="at least 1 bin"):
        histogram(w, 0)
    with pytest.raises(QuantizationError, match="ascending"):
        histogram(w, np.array([1.0, 0.0]))
    with pytest.raises(QuantizationError, match="at least 2 points"):
        qq_points(w, 1)
    with pytest.raises(QuantizationError, match="1 x 1"):
        weight_map(w, 0, 3)
    w[0, 0] = np.nan
    for ask in (weight_statistics, largest_weights, histogram, qq_points):
        with pytest.raises(QuantizationError, match="holds 1 non-finite weight"):
            ask(w)

    def stop(fraction):
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        weight_statistics(np.ones((2, 3), np.float32), progress=stop)

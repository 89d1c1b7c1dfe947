from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workbench.calibration import RangeObserver, parse_range_rule
from workbench.errors import QuantizationError
from workbench.grids import PowerGrid

NUMBERS = arrays.arrays(
    np.float32, arrays.array_shapes(max_dims=2, max_side=30), elements=st.floats(-1e6, 1e6, width=32)
)


def seen(*parts):
    observer = RangeObserver()
    for part in parts:
        observer.update(part)
    return observer


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_the_extremes_and_every_number_are_kept(parts):
    observer = seen(*parts)
    whole = np.concatenate([part.ravel() for part in parts])
    assert observer.range() == (min(float(whole.min()), 0.0), max(float(whole.max()), 0.0))
    assert observer.count == whole.size == observer._counts.sum()
    # Each number lies in the bin that counts it.
    edges, below = observer._edges, np.concatenate([[0], np.cumsum(observer._counts)])
    for place in range(0, len(edges), 512):
        width = edges[1] - edges[0]
        assert np.count_nonzero(whole < edges[place] - width) <= below[place]
        assert below[place] <= np.count_nonzero(whole <= edges[place] + width)


@given(st.lists(NUMBERS, min_size=2, max_size=4))
def test_merging_equals_seeing_everything(parts):
    merged = seen(parts[0])
    merged.merge(seen(*parts[1:]))
    whole = seen(*parts)
    assert merged.count == whole.count
    assert merged.range() == whole.range()
    assert np.array_equal(merged._counts, whole._counts)


def test_the_order_of_magnitudes_does_not_matter():
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=1000), 1000 * rng.normal(size=1000)
    one, other = seen(small, large), seen(large, small)
    assert one.range("percentile:99") == pytest.approx(other.range("percentile:99"), rel=1e-3)


def test_percentiles_cut_the_same_share_off_either_end():
    numbers = np.random.default_rng(1).normal(size=200_000)
    low, high = seen(*np.split(numbers, 20)).range("percentile:99")
    exact = np.percentile(numbers, [0.5, 99.5])
    bin_width = 2 * 8.0 / 8192  # the reach is the power of two above the largest number
    assert abs(low - exact[0]) <= 2 * bin_width
    assert abs(high - exact[1]) <= 2 * bin_width


@pytest.mark.parametrize("levels", [4, 16, 256])
def test_mse_finds_the_range_with_the_smallest_error(levels):
    numbers = np.random.default_rng(2).laplace(size=100_000)
    observer = seen(numbers)

    def true_error(low, high):
        step = (high - low) / (levels - 1)
        codes = np.clip(np.rint((numbers - low) / step), 0, levels - 1)
        return float(np.mean((codes * step + low - numbers) ** 2))

    low, high = observer.range("mse", levels)
    best = min(true_error(clip * numbers.min(), clip * numbers.max()) for clip in np.geomspace(1, 0.02, 400))
    assert true_error(low, high) <= 1.03 * best
    assert true_error(low, high) < true_error(*observer.range()) or levels == 256


@pytest.mark.parametrize("distribution", ["normal", "exponential", "uniform"])
def test_the_best_exponent_is_the_best_of_all_tried(distribution):
    rng = np.random.default_rng(3)
    numbers = np.abs(getattr(rng, distribution)(size=50_000))
    observer = seen(numbers)
    u = numbers / numbers.max()

    def true_error(exponent):
        grid = PowerGrid(bits=4, exponent=exponent, signed=False)
        return float(np.mean((u - grid.levels[grid.index(u)]) ** 2))

    found = observer.best_exponent(4)
    best = min(true_error(float(exponent)) for exponent in np.round(np.arange(0.2, 1.2001, 0.02), 2))
    assert true_error(found) <= 1.01 * best
    assert RangeObserver.best_exponent(seen(np.zeros(3)), 4) == 1.0


def test_zeros_and_empty_arrays():
    observer = seen(np.zeros((0, 3)))
    with pytest.raises(QuantizationError, match="nothing was seen"):
        observer.range()
    observer.update(np.zeros(5))
    assert observer.range("mse") == (0.0, 0.0)
    assert observer.range("percentile:99") == (0.0, 0.0)


def test_what_is_not_finite_is_counted_and_refused():
    with pytest.raises(QuantizationError, match="2 numbers that are NaN or infinite"):
        seen(np.array([1.0, np.nan, np.inf]))


@pytest.mark.parametrize("text", ["max", "percentile", "percentile:", "percentile:20", "percentile:101", "mse:3"])
def test_unknown_rules_are_refused(text):
    with pytest.raises(QuantizationError, match="a range rule is minmax"):
        parse_range_rule(text)
    assert str(parse_range_rule("percentile:99.9")) == "percentile:99.9"

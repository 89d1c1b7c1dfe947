"""The borders between levels, judged by exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.grids.thresholds import (
    midway_thresholds,
    mirrored_levels,
    mirrored_thresholds,
    quotient_thresholds,
    rounding_thresholds,
)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 15, 31, 127, 255, 1023, 32767, 65535])
def test_rounding_thresholds_are_the_first_floats_of_rint(n):
    thresholds = rounding_thresholds(n)
    code = np.arange(n)
    np.testing.assert_array_equal(np.rint(n * thresholds), code + 1)
    np.testing.assert_array_equal(np.rint(n * np.nextafter(thresholds, 0.0)), code)


@pytest.mark.parametrize("bits", range(1, 17))
def test_a_weight_on_a_tie_is_rounded_half_to_even(bits):
    """The quotient of such a weight and its scale is the float64 nearest to (k + 1/2) / n."""
    for n in {2**bits - 1, 2 ** (bits - 1), max(1, 2 ** (bits - 1) - 1)}:
        border = np.arange(n) + 0.5
        index = np.searchsorted(rounding_thresholds(n), border / n, side="right")
        np.testing.assert_array_equal(index, np.rint(border))


ordered = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=20, unique=True).map(sorted)


@settings(max_examples=50, deadline=None)
@given(ordered, st.booleans())
def test_midway_thresholds_are_exact(levels, up):
    levels = np.array(levels)
    thresholds = midway_thresholds(levels, np.full(len(levels) - 1, up))
    for low, high, threshold in zip(levels, levels[1:], thresholds, strict=False):
        middle = (Fraction(low) + Fraction(high)) / 2

        def belongs_above(u, middle=middle):
            return Fraction(u) > middle or (up and Fraction(u) == middle)

        assert belongs_above(float(threshold))
        assert not belongs_above(float(np.nextafter(threshold, -np.inf)))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**12), st.integers(1, 2**12), st.booleans(), st.integers(-5, 5))
def test_quotients_fall_where_the_dividends_fall(border, peak, up, off):
    """A float32 next to a border, or on it, keeps its side after the division by the peak."""
    threshold = quotient_thresholds(np.array([border / 8]), float(peak), np.array([up]))[0]
    x = np.float32(border / 8)
    for _ in range(abs(off)):
        x = np.nextafter(x, np.float32(np.sign(off) * np.inf))
    above = float(x) > border / 8 or (up and float(x) == border / 8)
    assert (float(x) / peak >= threshold) == above


def test_mirrored_halves():
    positive = np.array([0.5, 1.0])
    np.testing.assert_array_equal(mirrored_levels(positive), [-1, -0.5, 0, 0.5, 1])
    both = mirrored_thresholds(np.array([0.25, 0.75]))
    np.testing.assert_array_equal(both[2:], [0.25, 0.75])
    assert np.all(np.nextafter(both[:2], -1.0) == [-0.75, -0.25])

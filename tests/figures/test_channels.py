from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from workbench.figures.channels import MOST_POINTS, buckets, channel_error_figure, kurtosis_figure, range_figure


@given(arrays(np.float64, st.integers(1, 400), elements=st.floats(-10, 10, width=32)), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_buckets_lose_no_extreme_and_cover_every_channel(values: np.ndarray, most: int) -> None:
    runs = buckets(values, most)
    assert len(runs.first) <= most
    assert runs.first[0] == 0
    assert runs.last[-1] == len(values) - 1
    np.testing.assert_array_equal(runs.first[1:], runs.last[:-1] + 1)
    assert runs.high.max() == values.max()
    assert runs.low.min() == values.min()
    np.testing.assert_array_equal(values[runs.peak], runs.high)


def test_few_channels_stay_single() -> None:
    runs = buckets(np.arange(MOST_POINTS, dtype=float))
    assert runs.names[:2] == ["0", "1"]
    assert buckets(np.arange(MOST_POINTS + 1, dtype=float)).names[0] == "0–1"


def test_a_click_on_a_run_means_the_channel_of_largest_magnitude() -> None:
    smallest, largest = np.full(5000, -1.0), np.full(5000, 1.0)
    smallest[4321] = -9.0
    upper, lower, _ = range_figure(smallest, largest).data
    point = int(np.argmin(lower.y))
    assert lower.y[point] == -9.0
    assert upper.customdata[point][0] == 4321
    assert lower.customdata[point] == upper.customdata[point]


def test_picked_channel_is_marked_at_its_range() -> None:
    figure = range_figure(np.array([-1.0, -2, -3]), np.array([1.0, 2, 4]), picked=2)
    np.testing.assert_array_equal(figure.data[2].x, [2, 2])
    np.testing.assert_array_equal(figure.data[2].y, [-3, 4])
    assert range_figure(np.array([-1.0]), np.array([1.0]), picked=7).data[2].x.size == 0
    assert kurtosis_figure(np.array([3.0, 9.0]), picked=1).data[-1].y.tolist() == [9.0]


def test_sorted_errors_fall_and_keep_their_channel_numbers() -> None:
    mse = np.random.default_rng(0).random(300)
    figure = channel_error_figure(mse, reference=mse * 2, ordered=True, picked=17)
    reference, own, mark = figure.data
    assert (np.diff(own.y) <= 0).all()
    np.testing.assert_allclose(mse[[c[0] for c in own.customdata]], own.y, rtol=1e-6)
    np.testing.assert_allclose(reference.y, own.y * 2, rtol=1e-6)  # channel by channel, in the same order
    assert own.customdata[int(mark.x[0])][0] == 17
    assert mark.y[0] == pytest.approx(mse[17])


@pytest.mark.parametrize("axis", ["input", "output"])
def test_axes_say_what_they_are(axis: str) -> None:
    values = np.linspace(1, 2, 10)
    for figure in (range_figure(-values, values, axis=axis), kurtosis_figure(values, axis=axis)):
        assert figure.layout.xaxis.title.text == f"{axis} channel"
        assert figure.layout.yaxis.title.text
    assert channel_error_figure(values).layout.yaxis.title.text == "mean squared error"

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.figures.integer import MOST_STEPS, accumulator_figure, off_by_figure, outputs_figure


def test_outputs_show_the_three_and_tell_the_distance_in_steps():
    real = np.array([0.0, 1.0, -2.0])
    figure = outputs_figure(real, real + 0.1, real + np.array([0.5, 0.0, -0.25]), step=0.25, row=4, picked=2)
    line, fake, integer, mark = figure.data
    np.testing.assert_array_equal(line.y, [0, 1, -2])
    np.testing.assert_allclose(fake.y, [0.1, 1.1, -1.9], rtol=1e-6)
    assert [point[0] for point in integer.customdata] == [0, 1, 2]
    assert [point[1] for point in integer.customdata] == [2.0, 0.0, -1.0]
    assert (mark.x.tolist(), mark.y.tolist()) == ([2], [-2.25])
    assert "row 4" in figure.layout.title.text


def test_nothing_picked_and_nothing_there_still_draw():
    assert outputs_figure(np.ones(2), np.ones(2), np.ones(2), step=0.0, picked=9).data[3].x.size == 0
    empty = outputs_figure(np.zeros(0), np.zeros(0), np.zeros(0), step=1.0)
    assert [trace.x.size for trace in empty.data] == [0, 0, 0, 0]
    assert "no outputs" in off_by_figure({}, names=("a", "b")).layout.title.text


@given(st.dictionaries(st.integers(-300, 300), st.integers(1, 10**6), max_size=20))
@settings(max_examples=40, deadline=None)
def test_every_output_stands_in_one_bar(differences):
    figure = off_by_figure(differences, names=("tflm", "onnxruntime"))
    bars = figure.data[0]
    assert np.nansum(bars.y.astype(float)) == pytest.approx(sum(differences.values()), rel=1e-6)
    total = sum(differences.values())
    if total:
        assert f"{total - differences.get(0, 0):,} of {total:,}" in figure.layout.title.text
    assert max(bars.x) <= MOST_STEPS


def test_far_differences_share_the_outermost_bars():
    bars = off_by_figure({0: 5, 40: 2, -9: 1, 8: 1}, names=("a", "b")).data[0]
    assert bars.customdata[0][0] == "≤ -8"
    assert bars.customdata[-1][0] == "≥ 8"
    assert (bars.y[0], bars.y[-1]) == (1, 3)


def test_sums_beyond_the_accumulator_have_another_colour():
    counts = np.zeros(20, dtype=int)
    counts[[12, 17]] = 7, 2
    figure = accumulator_figure(counts, worst_case=18, width=16)
    bars = figure.data[0]
    assert bars.y[12] == 7
    assert np.isnan(bars.y[13])
    assert bars.marker.color[17] != bars.marker.color[12]
    assert [trace.name for trace in figure.data[1:]] == ["accumulator: 16 bits", "worst case: 18 bits"]

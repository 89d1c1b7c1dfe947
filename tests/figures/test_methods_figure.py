from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.figures.distribution import Bars
from workbench.figures.methods import Curve, before_after_figure, curves_figure, levels_figure


def test_curves_are_relative_to_their_start_and_told_apart_by_dash_too():
    figure = curves_figure([Curve("a", [0, 5], [4.0, 1.0]), Curve("b", [0, 10], [100.0, 50.0])], steps=20)
    first, second = figure.data
    np.testing.assert_allclose(first.y, [1.0, 0.25])
    np.testing.assert_allclose(second.y, [1.0, 0.5])
    assert first.line.dash != second.line.dash
    assert first.line.color != second.line.color
    assert figure.layout.xaxis.range == (0, 20)


def test_losses_that_start_at_zero_or_are_missing_draw_nothing_and_break_nothing():
    for loss in ([0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0]):
        (curve,) = curves_figure([Curve("a", [0, 1], loss)]).data
        assert np.isnan(curve.y).all()
    assert len(curves_figure([]).data) == 0
    assert curves_figure([Curve("a", [], [])]).data[0].x.size == 0


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40))
@settings(max_examples=40, deadline=None)
def test_every_point_lies_inside_the_axes(losses):
    figure = curves_figure([Curve("a", list(range(len(losses))), losses)])
    low, high = figure.layout.yaxis.range
    y = np.log10(np.asarray(figure.data[0].y, dtype=np.float64))
    assert low <= y.min() + 1e-6
    assert y.max() <= high + 1e-6


def test_before_and_after_are_shares_of_all_weights_in_the_same_bins():
    edges = np.linspace(-1, 1, 5)
    figure = before_after_figure(
        Bars("before", edges, np.array([1, 2, 3, 4])), Bars("X", edges, np.array([0, 5, 5, 0]))
    )
    bars, line = figure.data
    np.testing.assert_allclose(bars.y, [10, 20, 30, 40], rtol=1e-6)
    np.testing.assert_allclose(line.y, [np.nan, 50, 50, np.nan], rtol=1e-6)
    np.testing.assert_allclose(bars.x, line.x)
    empty = Bars("", np.zeros(1), np.zeros(0))
    assert before_after_figure(empty, empty).data[0].x.size == 0


def test_levels_stand_beside_those_of_rounding_to_nearest():
    levels = np.array([-1.0, 0.0, 1.0])
    stems, after, nearest = levels_figure(levels, np.array([0.2, 0.5, 0.3]), levels, np.array([0.1, 0.8, 0.1])).data
    np.testing.assert_allclose(after.y, [20, 50, 30], rtol=1e-6)
    np.testing.assert_allclose(nearest.y, [10, 80, 10], rtol=1e-6)
    assert stems.x.size == 9
    assert nearest.marker.symbol != after.marker.symbol


@pytest.mark.parametrize("dress", ["light", "dark"])
def test_both_themes_draw(dress):
    assert curves_figure([Curve(str(i), [0, 1], [2.0, 1.0]) for i in range(9)], dress=dress).data

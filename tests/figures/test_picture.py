from __future__ import annotations

import io

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from workbench.figures.comparison import Bar, comparison_figure
from workbench.figures.distribution import Bars, histogram_figure
from workbench.figures.palette import rgb, sequential, theme
from workbench.figures.picture import number, plain, png, stack, ticks
from workbench.figures.picture_figure import draw_figure
from workbench.figures.picture_map import draw_map


def count(image: Image.Image, colour: str) -> int:
    return int((np.asarray(image) == np.array(rgb(colour))).all(axis=2).sum())


def test_bars_take_room_in_proportion_to_their_values() -> None:
    look = theme("light")
    bars = [Bar("a", 10.0, 1e-3, 4, "=", "current"), Bar("b", 20.0, 1e-4, 4, "≈", "uniform")]
    image = draw_figure(comparison_figure(bars), 640, 400)
    assert count(image, look.uniform) == pytest.approx(2 * count(image, look.levels), rel=0.05)


def test_line_goes_where_the_data_go() -> None:
    figure = go.Figure(go.Scatter(x=[0.0, 1.0], y=[0.0, 1.0], mode="lines", line={"color": "#ff0000"}))
    image = np.asarray(draw_figure(figure, 400, 300)).astype(int)
    rows, columns = np.nonzero((image[..., 0] > 200) & (image[..., 1] < 60))
    assert np.corrcoef(rows, columns)[0, 1] < -0.99  # up to the right
    assert np.ptp(columns) > 250


def test_levels_cross_the_plot_from_floor_to_ceiling() -> None:
    bars = Bars("w", np.linspace(-1, 1, 11), np.ones(10))
    image = np.asarray(draw_figure(histogram_figure(bars, levels=np.array([0.0])), 400, 300)).astype(int)
    orange = (abs(image - np.array(rgb(theme("light").levels))).sum(axis=2) < 150).any(axis=1)
    assert orange[60:240].all()


def test_map_puts_row_zero_where_it_is_asked() -> None:
    values = np.array([[0.0, 0.0], [1.0, 1.0]])
    edges = np.array([0.0, 1.0, 2.0])
    labels = ("x", "y", "value")
    table = sequential()
    for up, top in ((False, table[0]), (True, table[255])):
        image = draw_map(values, table, 0.0, 1.0, x_edges=edges, y_edges=edges, labels=labels, up=up)
        np.testing.assert_array_equal(np.asarray(image)[40, 300], top)


def test_map_leaves_cells_without_a_value_empty() -> None:
    values = np.full((2, 2), np.nan)
    edges = np.array([0.0, 1.0, 2.0])
    image = draw_map(values, sequential(), 0.0, 1.0, x_edges=edges, y_edges=edges, labels=("", "", ""), dress="dark")
    assert tuple(np.asarray(image)[100, 200]) == rgb(theme("dark").paper)


def test_png_round_trip_and_stacking() -> None:
    one, two = Image.new("RGB", (30, 10)), Image.new("RGB", (20, 15))
    assert stack([one, two]).size == (30, 25)
    assert stack([one, two], beside=True).size == (50, 15)
    assert Image.open(io.BytesIO(png(one))).size == (30, 10)


def test_text_has_only_signs_of_the_font() -> None:
    assert plain("<b>SQNR</b> ≈ 3 σ²").isascii()
    assert plain("entropy ≈ 3.1") == "entropy ~ 3.1"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.37, 0.41), (1e-9, 3e-9), (0, 25000)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 6)
    assert 3 <= len(found) <= 13
    assert low - 1e-12 <= found[0] < found[-1] <= high * (1 + 1e-12)
    assert all(len(number(t)) <= 8 for t in found)

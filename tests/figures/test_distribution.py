from __future__ import annotations

import numpy as np
import pytest

from workbench.figures.distribution import Bars, Quantiles, histogram_figure, occupancy_figure, quantile_figure


@pytest.fixture
def layer() -> Bars:
    weights = np.random.default_rng(3).laplace(size=5000)
    counts, edges = np.histogram(weights, bins=64)
    return Bars("model.layers.0.mlp.down_proj", edges, counts.astype(float))


def assert_labelled(figure) -> None:
    assert figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text
    assert figure.layout.title.text is not None
    assert figure.layout.uirevision == "keep"


def test_histogram_shows_every_weight_once(layer: Bars) -> None:
    figure = histogram_figure(layer)
    assert_labelled(figure)
    assert np.sum(figure.data[0].y) == 5000
    np.testing.assert_allclose(figure.data[0].x + figure.data[0].width / 2, layer.edges[1:], rtol=1e-5)
    assert figure.layout.yaxis.title.text == "weights per bin"


def test_levels_stand_where_they_are_with_their_codes(layer: Bars) -> None:
    levels, codes = np.array([-1.0, -0.25, 0.0, 0.25, 1.0]), np.array([-2, -1, 0, 1, 2])
    sticks = histogram_figure(layer, levels=levels, codes=codes).data[1]
    np.testing.assert_allclose(sticks.x[::4], levels)
    assert list(sticks.customdata[::4]) == codes.tolist()
    assert sticks.yaxis == "y2"
    assert sticks.name == "5 levels"


def test_log_axis_holds_single_weights_and_the_tallest_bin(layer: Bars) -> None:
    axis = histogram_figure(layer, log=True).layout.yaxis
    assert axis.type == "log"
    low, high = (10.0**v for v in axis.range)
    assert low < 1.0
    assert high > layer.counts.max()


def test_comparison_is_in_shares_because_layers_differ_in_size(layer: Bars) -> None:
    other = Bars("other", layer.edges, layer.counts * 7)
    figure = histogram_figure(layer, compared=[other])
    assert "%" in figure.layout.yaxis.title.text
    assert np.sum(figure.data[0].y) == pytest.approx(100, rel=1e-4)
    np.testing.assert_allclose(figure.data[0].y, figure.data[2].y, rtol=1e-5)


def test_all_arrays_are_flat_float32(layer: Bars) -> None:
    figures = [
        histogram_figure(layer, levels=np.array([0.0, 1.0]), compared=[layer]),
        occupancy_figure(np.arange(3), np.array([-1.0, 0, 1]), np.array([1.0, 2, 3]), entropy=1.2, bits=2),
        quantile_figure([Quantiles("a", np.array([-1.0, 0, 1]), np.array([-2.0, 0, 2]))]),
    ]
    for trace in (trace for figure in figures for trace in figure.data):
        for array in (trace.x, trace.y):
            assert array.dtype == np.float32
            assert array.ndim == 1


def test_occupancy_adds_up_and_tells_the_entropy() -> None:
    codes, levels = np.array([-1, 0, 1]), np.array([-1.0, 0.0, 1.0])
    figure = occupancy_figure(codes, levels, np.array([1.0, 2.0, 1.0]), entropy=1.5, bits=2, badge="=")
    assert_labelled(figure)
    np.testing.assert_allclose(figure.data[0].y, [25, 50, 25])
    assert "entropy = 1.500 of 2 bits" in figure.layout.title.text
    assert list(figure.layout.xaxis.ticktext) == ["-1", "0", "1"]


def test_occupancy_of_eight_bits_keeps_few_ticks() -> None:
    codes = np.arange(-127, 128)
    figure = occupancy_figure(codes, codes / 127.0, np.ones(255), entropy=7.99, bits=8)
    assert len(figure.layout.xaxis.tickvals) <= 16
    assert len(figure.data[0].y) == 255


def test_quantiles_have_the_gaussian_as_reference() -> None:
    figure = quantile_figure([Quantiles("a", np.array([-3.0, 0, 3]), np.array([-9.0, 0, 9]))])
    assert_labelled(figure)
    np.testing.assert_array_equal(figure.data[0].x, figure.data[0].y)
    assert figure.data[1].name == "a"

from __future__ import annotations

import numpy as np
import pytest

from workbench.figures.comparison import Bar, comparison_figure
from workbench.figures.landscape import borders, landscape_map
from workbench.figures.palette import theme
from workbench.figures.weight_map import strongest_channel, weight_picture
from workbench.quantization import landscape, sketch, weight_map, weight_statistics


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return (0.02 * np.random.default_rng(2).standard_t(4, (50, 70))).astype(np.float32)


def test_landscape_lies_exponent_right_clip_up(weights: np.ndarray) -> None:
    found = landscape(sketch(weights), 4, exponents=np.array([0.4, 0.6, 0.9]), clips=np.array([0.5, 1.0]))
    shown = landscape_map(found, span_db=3.0)
    np.testing.assert_array_equal(shown.values, found.sqnr_db.T)
    np.testing.assert_allclose(shown.exponent_edges, [0.3, 0.5, 0.75, 1.05])
    np.testing.assert_allclose(shown.clip_edges, [0.25, 0.75, 1.25])
    assert shown.high == found.sqnr_db.max()
    assert shown.high - 3.0 <= shown.low < shown.high
    assert shown.best == found.best
    assert shown.badge == "≈"


def test_an_exact_sketch_s_landscape_says_so(weights: np.ndarray) -> None:
    import ml_dtypes

    found = landscape(sketch(weights.astype(ml_dtypes.bfloat16), "tensor"), 4, np.array([0.5]), np.array([1.0]))
    assert landscape_map(found).badge == "="


def test_borders_lie_midway() -> None:
    np.testing.assert_allclose(borders(np.array([1.0, 2.0, 4.0])), [0.5, 1.5, 3.0, 5.0])
    np.testing.assert_allclose(borders(np.array([2.0])), [1.5, 2.5])


def test_weight_picture_keeps_every_row_and_column_in_one_cell(weights: np.ndarray) -> None:
    shown = weight_picture(weight_map(weights, 16, 32))
    assert shown.values.shape == (16, 32)
    assert (shown.row_edges[0], shown.row_edges[-1]) == (0, 50)
    assert (shown.column_edges[0], shown.column_edges[-1]) == (0, 70)
    for line in range(16):
        rows = slice(int(shown.row_edges[line]), int(shown.row_edges[line + 1]))
        assert np.abs(weights[rows]).max() == np.abs(shown.values[line]).max()
    assert 0 < shown.reach <= np.abs(weights).max()


def test_a_click_in_a_cell_means_its_strongest_channel(weights: np.ndarray) -> None:
    channels = weight_statistics(weights).output
    edges = np.array([0.0, 20.0, 50.0])
    assert strongest_channel(channels, edges, 3.0) == int(np.argmax(np.abs(weights[:20]).max(axis=1)))
    assert strongest_channel(channels, edges, 20.0) == 20 + int(np.argmax(np.abs(weights[20:]).max(axis=1)))
    assert strongest_channel(channels, edges, 50.0) == strongest_channel(channels, edges, 21.0)


def test_bars_carry_badges_colours_and_every_number() -> None:
    look = theme("dark")
    bars = [Bar("this grid", 18.0, 1e-5, 4.1, "=", "current", "power 4-bit"), Bar("nf4", np.inf, 0.0, 4.1, "≈", "best")]
    trace = comparison_figure(bars, dress="dark").data[0]
    assert list(trace.text) == ["= 18.00", "≈ inf"]
    assert list(trace.marker.color) == [look.levels, look.best]
    assert trace.customdata[0][3] == "power 4-bit"
    assert np.isnan(trace.x[1])  # an infinite bar has no length

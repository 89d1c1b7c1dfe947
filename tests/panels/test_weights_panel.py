from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from workbench.grids import parse_grid
from workbench.panels import WeightsPanel
from workbench.quantization import quantize

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def panel(session):
    session.select(LAYER)
    made = WeightsPanel(session)
    assert made.wait(60)
    yield made
    made.close()


def bars(panel: WeightsPanel) -> float:
    return float(np.sum(panel.figure("histogram").data[0].y))


def test_every_weight_is_in_the_histogram_on_both_axes(panel: WeightsPanel, session) -> None:
    count = session.layer.parameters
    assert bars(panel) == count
    panel.axis.value = "value"
    assert bars(panel) == count
    assert panel.figure("histogram").layout.xaxis.title.text == "weight value"
    assert not panel.error_text


def test_levels_follow_grid_and_clip(panel: WeightsPanel, session) -> None:
    session.set_grid("uniform:bits=3")
    session.clip = 0.5
    levels = np.unique(panel.figure("histogram").data[1].x)
    np.testing.assert_allclose(levels, np.linspace(-0.5, 0.5, 7), atol=1e-7)


def test_levels_in_weights_appear_where_one_scale_serves_all(panel: WeightsPanel, session) -> None:
    panel.axis.value = "value"
    assert panel.figure("histogram").data[1].x.size == 0
    assert "levels differ" in panel.figure("histogram").layout.title.text
    session.granularity = "tensor"
    assert panel.wait(60)
    levels = np.unique(panel.figure("histogram").data[1].x)
    used = np.unique(quantize(session.layer, session.grid, "tensor").dequantize())
    assert np.abs(levels[:, None] - used[None, :]).min(axis=0).max() < 1e-6


def test_occupancy_is_that_of_quantize(panel: WeightsPanel, session) -> None:
    codes = quantize(session.layer, session.grid, session.granularity).codes
    numbers = panel.numbers()
    found = numbers["codes"]
    exact = {int(c): int((codes == c).sum()) for c in session.grid.codes}
    assert sum(found.values()) == pytest.approx(sum(exact.values()))
    assert max(abs(found[c] - exact[c]) for c in exact) <= 0.02 * codes.size
    assert 0 < numbers["entropy"] <= session.grid.bits
    assert "≈" in panel.figure("occupancy").layout.title.text


def test_compared_layers_are_drawn_as_shares(panel: WeightsPanel, session) -> None:
    session.compared = ("model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj")
    assert panel.wait(60)
    histogram = panel.figure("histogram")
    assert len(histogram.data) == 4
    assert "%" in histogram.layout.yaxis.title.text
    assert len(panel.figure("quantiles").data) == 4
    assert len(panel.figure("occupancy").data) == 3
    session.compared = ()
    assert len(panel.figure("histogram").data) == 2


def test_logarithmic_counts_and_dark_theme(panel: WeightsPanel, session) -> None:
    panel.counts.value = True
    session.theme = "dark"
    assert panel.figure("histogram").layout.yaxis.type == "log"
    assert panel.figure("quantiles").layout.template.layout.font.color == "#e6e6e6"


@pytest.mark.parametrize("rule", ["absmax", "mse", "percentile:99.9"])
def test_code_runs_and_gives_the_same_numbers(panel: WeightsPanel, session, rule: str) -> None:
    session.scale_rule = rule
    space: dict = {}
    exec(panel.code(), space)
    numbers = panel.numbers()
    np.testing.assert_array_equal(space["counts"].counts, numbers["histogram"]["counts"])
    np.testing.assert_array_equal(space["quantiles"].weights, numbers["quantiles"]["weights"])
    assert space["normalised"].counts.sum() == session.layer.parameters
    if rule != "percentile:99.9":
        assert space["codes"].entropy == numbers["entropy"]
    assert not panel.error_text


@pytest.mark.parametrize(
    "grid",
    ["uniform:bits=4,range=asymmetric", "uniform:bits=4,range=full", "nf4", "mxfp4", "power:bits=8,exponent=0.5"],
)
def test_every_kind_of_grid_is_drawn(panel: WeightsPanel, session, grid: str) -> None:
    session.set_grid(grid)
    assert panel.wait(60)
    assert not panel.error_text
    assert len(panel.figure("occupancy").data[0].y) == len(parse_grid(grid).levels)


def test_snapshot_is_a_picture_with_the_numbers(panel: WeightsPanel) -> None:
    taken = panel.snapshot()
    picture = np.asarray(Image.open(io.BytesIO(taken.png)))
    assert picture.shape[1] == 760
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert taken.numbers["state"]["layer"] == LAYER


def test_an_empty_session_shows_an_empty_panel() -> None:
    from workbench.panels import Session

    session = Session()
    panel = WeightsPanel(session)
    assert not panel.error_text
    assert panel.snapshot().png
    panel.close()
    session.close()


def test_a_closed_panel_hears_nothing_more(session) -> None:
    panel = WeightsPanel(session)
    panel.close()
    session.set_grid("uniform:bits=3")
    session.compared = (LAYER,)
    assert session.wait(60)
    assert session.message == ""

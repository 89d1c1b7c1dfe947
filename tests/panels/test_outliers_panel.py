from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from workbench.panels import OutliersPanel
from workbench.quantization import quantize

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def panel(session):
    session.select(LAYER)
    made = OutliersPanel(session)
    assert made.wait(60)
    yield made
    made.close()


@pytest.fixture
def weights(panel: OutliersPanel, session) -> np.ndarray:
    return np.asarray(session.layer.weight).astype(np.float64)


@pytest.mark.parametrize("axis", ["output", "input"])
def test_ranges_and_kurtosis_are_numpys(panel: OutliersPanel, weights: np.ndarray, axis: str) -> None:
    panel.axis.value = axis
    along = 1 if axis == "output" else 0
    upper, lower, _ = panel.figure("ranges").data
    np.testing.assert_allclose(upper.y, np.maximum(weights.max(axis=along), 0), rtol=1e-6)
    np.testing.assert_allclose(lower.y, np.minimum(weights.min(axis=along), 0), rtol=1e-6)
    centred = weights - weights.mean(axis=along, keepdims=True)
    expected = (centred**4).mean(axis=along) / (centred**2).mean(axis=along) ** 2
    np.testing.assert_allclose(panel.figure("kurtosis").data[0].y, expected, rtol=1e-5)
    assert panel.figure("ranges").layout.xaxis.title.text == f"{axis} channel"


def test_largest_weights_are_in_the_table_with_their_places(panel: OutliersPanel, weights: np.ndarray) -> None:
    value, row, column = panel.weights.rows[0]
    place = np.unravel_index(np.argmax(np.abs(weights)), weights.shape)
    assert (int(row), int(column)) == place
    assert float(value) == pytest.approx(weights[place], rel=1e-4)
    magnitudes = [abs(float(cells[0])) for cells in panel.weights.rows]
    assert magnitudes == sorted(magnitudes, reverse=True)


def test_a_click_in_a_plot_shows_the_channel_alone(panel: OutliersPanel, weights: np.ndarray, session) -> None:
    panel._views["ranges"].clicked = {"count": 1, "data": [9, "9"]}
    assert session.channel == 9
    assert panel.wait(60)
    alone = panel.figure("channel")
    assert np.sum(alone.data[0].y) == weights.shape[1]
    assert panel.alone.layout.display == "flex"
    used = np.unique(quantize(session.layer, session.grid, "channel").dequantize()[9])
    levels = np.unique(alone.data[1].x)
    assert np.abs(levels[:, None] - used[None, :]).min(axis=0).max() < 1e-6
    np.testing.assert_allclose(panel.figure("ranges").data[2].x, [9, 9])
    panel.none.click()
    assert session.channel == -1
    assert panel.alone.layout.display == "none"


def test_a_row_of_a_table_picks_its_channel(panel: OutliersPanel, session) -> None:
    panel.channels.picked = 2
    assert session.channel == int(panel.channels.rows[2][0])
    panel.weights.picked = 0
    assert session.channel == int(panel.weights.rows[0][1])
    panel.axis.value = "input"
    panel.weights.picked = 3
    assert panel.numbers()["channel"] == int(panel.weights.rows[3][2])
    assert session.channel == int(panel.weights.rows[0][1])  # an input channel is no channel of the session


def test_the_map_holds_the_weights_and_its_marker_picks(panel: OutliersPanel, weights: np.ndarray, session) -> None:
    np.testing.assert_allclose(panel.map.values, weights, rtol=1e-6)
    panel.map.marker = [3.5, 17.5]
    assert session.channel == 17
    session.channel = 40
    assert panel.map.marker == [3.5, 40.5]
    assert panel.channels.picked in {-1, *range(50)}
    session.channel = -1
    assert panel.map.marker == []


def test_another_layer_starts_afresh(panel: OutliersPanel, session) -> None:
    panel.map.marker = [3.5, 17.5]
    session.select("model.layers.1.mlp.down_proj")
    assert panel.wait(60)
    assert session.channel == -1
    assert (panel.map.rows, panel.map.columns) == (32, 64)
    assert panel.map.marker == []
    assert panel.weights.picked == -1
    assert "down_proj" in panel.map.label


@pytest.mark.parametrize("axis", ["output", "input"])
def test_code_runs_and_gives_the_same_numbers(panel: OutliersPanel, axis: str) -> None:
    panel.axis.value = axis
    panel._pick(5)
    assert panel.wait(60)
    space: dict = {}
    exec(panel.code(), space)
    numbers = panel.numbers()
    assert space["statistics"].to_dict() == numbers["statistics"]
    assert space["channels"].index.tolist() == numbers["channels"]["channel"]
    assert space["largest"].to_dict("list") == numbers["largest"]
    np.testing.assert_array_equal(space["picture"].values, panel.map.values)
    np.testing.assert_array_equal(space["alone"].counts, panel.figure("channel").data[0].y)


def test_snapshot_draws_the_map_and_names_the_largest(panel: OutliersPanel) -> None:
    taken = panel.snapshot()
    picture = np.asarray(Image.open(io.BytesIO(taken.png)))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert taken.numbers["largest"]["value"][0] == pytest.approx(float(panel.weights.rows[0][0]), rel=1e-4)


def test_an_empty_session_shows_an_empty_panel() -> None:
    from workbench.panels import Session

    session = Session()
    panel = OutliersPanel(session)
    assert not panel.error_text
    assert panel.map.data == b""
    panel.close()
    session.close()

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from workbench.grids import PowerGrid, UniformGrid
from workbench.panels import ErrorPanel
from workbench.quantization import error, quantize

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def panel(session):
    session.select(LAYER)
    made = ErrorPanel(session)
    assert made.wait(120)
    yield made
    made.close()


def text_of(panel: ErrorPanel) -> str:
    return re.sub(r"<[^>]+>", " ", panel.table.value.split("</style>")[1])


def test_this_grid_is_measured_as_quantize_does(panel: ErrorPanel, session) -> None:
    judge = error(session.layer, quantize(session.layer, session.grid, session.granularity))
    mine = panel.numbers()["errors"]["this grid"]
    assert mine["badge"] == "="
    for name in ("mse", "sqnr_db", "cosine", "max_abs", "max_steps"):
        assert mine[name] == pytest.approx(getattr(judge, name), rel=1e-9), name
    assert f"= {judge.mse:.4g}" in text_of(panel)
    assert f"= {judge.sqnr_db:.2f}" in text_of(panel)


def test_rivals_have_the_same_bits_and_are_measured(panel: ErrorPanel, session) -> None:
    errors = panel.numbers()["errors"]
    uniform, best = errors["uniform, same bits"], errors["best of all grids"]
    assert uniform["grid"] == "uniform:bits=4"
    assert uniform["badge"] == best["badge"] == "="
    judge = error(session.layer, quantize(session.layer, UniformGrid(bits=4), "channel", clip=uniform["clip"]))
    assert uniform["mse"] == pytest.approx(judge.mse, rel=1e-9)
    assert best["mse"] <= min(uniform["mse"], errors["this grid"]["mse"])
    assert best["bits_per_weight"] <= errors["this grid"]["bits_per_weight"] + 0.01
    bars = panel.figure("bars").data[0]
    assert bars.y[0] == "this grid"
    assert len(bars.y) >= 9
    assert all(text[0] in "=≈" for text in bars.text)


def test_a_sketch_s_number_wears_its_badge_until_it_is_measured(panel: ErrorPanel, session) -> None:
    session.set_trait("exact", None)
    assert f"≈ {session.report.mse:.4g} ±" in text_of(panel)
    assert panel.numbers()["errors"]["this grid"]["badge"] == "≈"
    assert panel.figure("bars").data[0].text[0].startswith("≈")


def test_channel_errors_sorted_and_not(panel: ErrorPanel, session) -> None:
    exact = session.exact.per_channel
    reference, own, _ = panel.figure("channels").data
    np.testing.assert_allclose(own.y, exact, rtol=1e-6)
    assert reference.name == "uniform, same bits"
    panel.order.value = True
    assert (np.diff(panel.figure("channels").data[1].y) <= 0).all()
    panel._views["channels"].clicked = {"count": 1, "data": [12, "12"]}
    assert session.channel == 12
    assert panel.figure("channels").data[2].y[0] == pytest.approx(exact[12], rel=1e-6)


def test_the_landscape_has_the_session_s_error_under_the_marker(panel: ErrorPanel, session) -> None:
    view = panel.map
    assert (view.rows, view.columns) == (64, 64)
    assert view.marker == [session.grid.exponent, session.clip]
    column = int(np.searchsorted(view.x_edges, session.grid.exponent)) - 1
    assert view.values[-1, column] == pytest.approx(session.report.sqnr_db, abs=0.3)
    row, column = np.unravel_index(np.argmax(view.values), view.values.shape)
    assert view.x_edges[column] < view.best[0] < view.x_edges[column + 1]
    assert view.y_edges[row] < view.best[1] < view.y_edges[row + 1]


def test_dragging_the_marker_sets_exponent_and_clip_at_once(panel: ErrorPanel, session) -> None:
    seen = []
    session.observe(lambda change: seen.append((session.grid.exponent, session.clip)), ["grid", "clip"])
    panel.map.marker = [0.7, 0.85]
    assert (session.grid, session.clip) == (PowerGrid(bits=4, exponent=0.7), 0.85)
    assert set(seen) == {(0.7, 0.85)}
    session.set_grid("power:bits=4,exponent=0.5")
    assert panel.map.marker == [0.5, 0.85]


def test_a_marker_beyond_the_edge_stays_inside(panel: ErrorPanel, session) -> None:
    panel.map.marker = [0.9, 1.005]
    assert session.clip == 1.0
    assert panel.map.marker == [0.9, 1.0]


def test_marker_turns_another_grid_into_a_power_grid(panel: ErrorPanel, session) -> None:
    session.set_grid("uniform:bits=3")
    assert panel.wait(120)
    assert panel.map.marker == []
    panel.map.marker = [0.6, 0.9]
    assert str(session.grid) == "power:bits=3,exponent=0.6"


def test_code_runs_and_gives_the_same_numbers(panel: ErrorPanel, session) -> None:
    session.clip = 0.9
    assert panel.wait(120)
    space: dict = {}
    exec(panel.code(), space)
    numbers = panel.numbers()
    errors = numbers["errors"]
    assert space["report"].mse == errors["this grid"]["mse"]
    assert space["uniform"].report.mse == errors["uniform, same bits"]["mse"]
    assert space["best"].report.mse == errors["best of all grids"]["mse"]
    assert space["found"].best == (numbers["landscape"]["exponent"], numbers["landscape"]["clip"])
    np.testing.assert_array_equal(space["report"].per_channel, numbers["per_channel"])


@pytest.mark.parametrize("grid", ["nf4", "mxfp4", "uniform:bits=4,range=asymmetric", "uniform:bits=2"])
def test_other_grids_and_their_rivals(panel: ErrorPanel, session, grid: str) -> None:
    session.set_grid(grid)
    assert panel.wait(120)
    assert not panel.error_text
    errors = panel.numbers()["errors"]
    assert len(errors) == 3
    assert errors["this grid"]["grid"] == grid


def test_snapshot_draws_table_landscape_and_channels(panel: ErrorPanel) -> None:
    taken = panel.snapshot()
    picture = Image.open(io.BytesIO(taken.png))
    assert picture.height > 900
    assert set(taken.numbers) == {"state", "errors", "landscape", "per_channel"}


def test_an_empty_session_shows_an_empty_panel() -> None:
    from workbench.panels import Session

    session = Session()
    panel = ErrorPanel(session)
    assert not panel.error_text
    assert panel.snapshot().numbers["errors"] == {}
    panel.close()
    session.close()

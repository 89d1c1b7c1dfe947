"""The Grid panel: the page's state and the session's, both ways."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from workbench.checkpoints import open_model
from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.panels import ErrorPanel, GridPanel, Session
from workbench.quantization import exact_error


@pytest.fixture
def panel(session):
    shown = GridPanel(session)
    assert session.wait(60)
    yield shown
    shown.close()


def page_says(panel, **state):
    """Do what a message from the browser does, and wait for the session."""
    panel.live.set_state(state)
    assert panel.session.wait(60)
    assert panel.error_text == ""


def test_it_opens_on_the_sessions_layer_and_its_exact_error(panel, session):
    assert panel.live.info["name"] == session.layer_name
    assert panel.live.grid == session.grid
    assert panel.live.exact["approximate"] is False
    assert panel.live.exact["mse"] == session.exact.mse
    assert "bfloat16" in panel.live.info["about"]


def test_what_the_page_says_sets_the_session(panel, session):
    page_says(panel, exponent=0.7, clip=0.8, bits=3)
    assert session.grid == PowerGrid(3, 0.7)
    assert session.clip == 0.8
    assert panel.live.exact["state"] == panel.live.state
    assert panel.live.exact["mse"] == exact_error(session.layer, PowerGrid(3, 0.7), clip=0.8).mse
    page_says(panel, family="uniform", range="full", granularity="tensor", scale_rule="mse", clip=1.0)
    assert (session.grid, session.granularity, session.scale_rule) == (UniformGrid(3, "full"), "tensor", "mse")
    assert panel.live.info["normalization"] == "signed"


def test_whoever_sets_the_session_moves_the_sliders(panel, session):
    session.set_grid("power:bits=6,exponent=0.4,rounding=nearest")
    session.clip = 0.9
    session.granularity = "group:32"
    live = panel.live
    assert (live.bits, live.exponent, live.rounding, live.clip, live.granularity) == (
        6,
        0.4,
        "nearest",
        0.9,
        "group:32",
    )
    session.set_grid("uniform:bits=12")
    assert live.family == "custom"
    assert live.grid == UniformGrid(12)


def test_a_session_change_does_not_come_back_as_an_echo(panel, session):
    seen = []
    session.observe(lambda change: seen.append(change.name), ["grid", "clip", "granularity", "scale_rule"])
    session.set_grid("power:bits=5,exponent=0.61")
    session.clip = 0.77
    assert session.wait(60)
    assert seen == ["grid", "clip"]


def test_a_block_format_brings_its_granularity(panel, session):
    page_says(panel, family="mxfp4")
    assert session.grid == parse_grid("mxfp4")
    assert session.granularity == panel.live.granularity == "group:32"
    assert panel.live.exact["mse"] == exact_error(session.layer, session.grid, granularity="group:32").mse
    assert panel.live.info["granularity"] == "group:32"  # the histogram stays that of plain scales
    page_says(panel, granularity="group:64")
    assert session.granularity == "group:64"


def test_an_asymmetric_grid_gets_a_plain_sketch(panel, session):
    page_says(panel, family="uniform", range="asymmetric")
    assert panel.live.info["normalization"] == "range"
    assert panel.live.exact["mse"] == exact_error(session.layer, UniformGrid(4, "asymmetric")).mse


def test_kmeans_is_fitted_for_the_layer_and_forgotten_with_it(panel, session):
    page_says(panel, family="k-means", bits=3)
    assert len(session.grid.levels) == 8
    assert panel.live.family == "k-means"
    assert panel.live.exact["state"]["family"] == "k-means"
    fitted = session.grid
    page_says(panel, bits=4)
    assert len(session.grid.levels) == 16
    assert exact_error(session.layer, session.grid).mse < exact_error(session.layer, UniformGrid(4)).mse
    page_says(panel, bits=3)
    assert session.grid == fitted
    session.select("model.layers.1.mlp.down_proj")
    assert session.wait(60)
    assert session.grid == fitted  # the grid stays; it is only no longer this layer's own codebook
    assert panel.live.family == "custom"


def test_nonsense_leaves_the_session_as_it_was(panel, session):
    page_says(panel, granularity="group:zero")
    assert session.granularity == "channel"
    assert panel.live.granularity == "channel"
    assert "granularity" in session.message


def test_another_layer_takes_the_old_answer_away(panel, session):
    before = panel.live.exact
    session.select("model.layers.1.mlp.down_proj")
    assert panel.live.exact != before
    assert session.wait(60)
    assert panel.live.info["name"] == "model.layers.1.mlp.down_proj"
    assert panel.live.exact["mse"] == session.exact.mse


def test_the_code_gives_the_number_on_the_panel(panel, session, capsys):
    page_says(panel, exponent=0.6, clip=0.85, granularity="group:16")
    namespace = {}
    exec(panel.code(), namespace)
    assert namespace["report"].mse == panel.live.exact["mse"] == session.exact.mse
    assert f"{session.exact.mse}" in capsys.readouterr().out


def test_snapshot_and_page(panel, session, tmp_path):
    shot = panel.snapshot()
    assert shot.png.startswith(b"\x89PNG")
    assert len(shot.png) > 4000
    assert shot.numbers["mse"] == session.exact.mse
    assert shot.numbers["bits_per_weight"] > 4
    json.dumps(shot.numbers)
    page = panel.to_html(tmp_path / "live.html")
    assert session.layer_name in page.read_text(encoding="utf-8")


def test_it_stands_without_a_model():
    panel = GridPanel()
    assert panel.live.info["waiting"] == "open a model and pick a layer"
    assert panel.snapshot().png.startswith(b"\x89PNG")
    panel.session.close()
    panel.close()


def test_a_closed_panel_hears_nothing_more(session):
    panel = GridPanel(session)
    live = panel.live
    panel.close()
    session.set_grid("uniform:bits=7")
    assert session.wait(60)
    assert live.bits != 7


def test_a_layer_that_cannot_be_measured_leaves_nothing_of_the_one_before(tmp_path):
    weight = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    broken = weight.copy()
    broken[2, 3] = np.nan
    save_file({"good.weight": weight, "nan.weight": broken}, tmp_path / "pair.safetensors")
    session = Session(open_model(tmp_path / "pair.safetensors"))
    grid_panel, error_panel = GridPanel(session), ErrorPanel(session)
    try:
        session.select("good")
        assert session.wait(60)
        assert error_panel.wait(60)
        assert "best" in error_panel.about_map.value
        session.select("nan")
        assert session.wait(60)
        assert error_panel.wait(60)
        assert "non-finite" in grid_panel.live.info["waiting"]
        assert grid_panel.live.info["name"] == "nan"
        assert not any(grid_panel.live.data)
        assert error_panel.about_map.value == ""
        session.select("good")
        assert session.wait(60)
        assert "waiting" not in grid_panel.live.info
        assert any(grid_panel.live.data)
    finally:
        error_panel.close()
        grid_panel.close()
        session.close()

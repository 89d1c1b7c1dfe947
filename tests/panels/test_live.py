"""The live grid's Python side: its state, what it sends, its answers, its page."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from traitlets import TraitError

from workbench.errors import GridError, QuantizationError, WorkbenchError
from workbench.grids import CodebookGrid, FloatGrid, LogGrid, PowerGrid, UniformGrid, parse_grid
from workbench.panels.live import LiveGrid, families, transport
from workbench.quantization import exact_error, sketch, sketch_error


@pytest.fixture(scope="module")
def weight():
    return (0.03 * np.random.default_rng(5).standard_t(5, (48, 96))).astype(np.float32).astype(ml_dtypes.bfloat16)


@pytest.fixture
def live(weight):
    widget = LiveGrid.from_layer(weight, bits=4)
    yield widget
    widget.close()


def answered(live, report):
    assert live.exact["mse"] == pytest.approx(report.mse, rel=1e-12)
    assert live.exact["error"] == pytest.approx(report.relative, rel=1e-9)
    assert live.exact["approximate"] is report.approximate
    assert live.exact["state"] == live.state


def test_it_answers_exactly_for_the_state_that_the_page_sent(live, weight):
    answered(live, exact_error(weight, PowerGrid(4, 0.55)))
    live.set_state({"bits": 3, "exponent": 0.7, "clip": 0.8})
    answered(live, exact_error(weight, PowerGrid(3, 0.7), clip=0.8))
    live.set_state({"family": "uniform", "range": "asymmetric", "granularity": "group:32"})
    answered(live, exact_error(weight, UniformGrid(3, "asymmetric"), granularity="group:32", clip=0.8))
    assert live.info["granularity"] == "group:32"
    assert live.info["normalization"] == "range"


@pytest.mark.parametrize("family", ["nf4", "e4m3", "mxfp4", "nvfp4", "log", "apot", "k-means"])
def test_every_family_is_measured(live, weight, family):
    live.set_state({"family": family, "granularity": "group:16"})
    assert ("rounds each block's scale" in live.message) is (live.grid.scale_format is not None)
    answered(live, exact_error(weight, live.grid, granularity="group:16"))


@pytest.mark.parametrize("rule", ["mse", "percentile:99"])
def test_every_scale_rule_is_measured(live, weight, rule):
    live.set_state({"scale_rule": rule})
    answered(live, exact_error(weight, live.grid, scale=rule))
    assert ("differ from group to group" in live.message) is (rule != "mse")


def test_a_sketch_alone_answers_approximately_and_says_what_it_cannot(weight):
    drawn = sketch(weight, "channel")
    live = LiveGrid(drawn, grid="uniform:bits=4")
    answered(live, sketch_error(drawn, UniformGrid(4)))
    assert live.exact["bound"] > 0
    live.granularity = "tensor"
    assert "give LiveGrid the layer" in live.message
    live.granularity = "channel"
    assert live.message == ""
    live.close()


def test_nonsense_from_the_page_is_refused_and_the_state_stays(live):
    for patch in ({"exponent": float("nan")}, {"clip": 0.0}, {"bits": 12}, {"rounding": "up"}):
        before = live.state
        with pytest.raises(TraitError):
            live.set_state(patch)
        assert live.state == before
    live.granularity = "group:none"
    assert "granularity" in live.message


@pytest.mark.parametrize(
    ("grid", "family"),
    [
        (UniformGrid(3, "full"), "uniform"),
        (PowerGrid(5, 0.31, "nearest"), "power"),
        (LogGrid(4), "log"),
        (parse_grid("apot:bits=6"), "apot"),
        (parse_grid("nf4"), "nf4"),
        (parse_grid("mxfp6-e3m2"), "mxfp6-e3m2"),
        (PowerGrid(4, 0.5, signed=False), "custom"),
        (UniformGrid(12), "custom"),
        (LogGrid(4, "log"), "custom"),
        (CodebookGrid((-1.0, -0.2, 0.1, 0.9)), "custom"),
        (FloatGrid(3, 1), "custom"),
    ],
    ids=str,
)
def test_the_controls_stand_for_the_grid_that_was_set(grid, family):
    live = LiveGrid()
    live.grid = grid
    assert live.family == family
    assert live.grid == grid
    if family == "custom":
        assert live.catalogue["custom"]["bits"] == grid.bits
    live.close()


def test_kmeans_without_a_layer_is_one_clear_sentence():
    live = LiveGrid(family="k-means")
    with pytest.raises(GridError, match="no k-means codebook of 4 bits"):
        _ = live.grid
    live.close()


@pytest.mark.parametrize("max_bins", [64, 2048])
@pytest.mark.parametrize("normalization", ["absmax", "signed", "range"])
def test_packing_keeps_every_error(weight, normalization, max_bins):
    """float32 moments about the bins' middles change errors by float32's own precision, even tiny ones."""
    full = sketch(weight, "channel", normalization)
    # Bins travel without the knowledge of which hold a single value (``sharp_borders``): their bound is wider for it.
    coarse = replace(transport.coarsen(full, max_bins), bfloat16=False)
    seen = transport.unpack_sketch(transport.pack_sketch(full, max_bins), full)
    assert len(seen.n) <= max_bins
    assert seen.n.sum() == full.count
    name = {"absmax": "narrow", "signed": "full", "range": "asymmetric"}[normalization]
    for bits in (2, 8):
        grid = UniformGrid(bits, name)
        assert sketch_error(seen, grid).mse == pytest.approx(sketch_error(coarse, grid).mse, rel=2e-6)


def test_the_picture_histogram_counts_every_weight():
    weight = np.random.default_rng(2).normal(size=(32, 128)).astype(np.float32)
    sent = np.frombuffer(transport.pack_sketch(sketch(weight)), dtype="<f4")[: transport.PICTURE_BINS]
    u = weight.astype(np.float64) / np.abs(weight).max(axis=1, keepdims=True)
    expected = np.histogram(u, bins=transport.PICTURE_BINS, range=(-1, 1))[0]
    assert sent.sum() == weight.size
    assert np.abs(sent - expected).sum() <= 2  # a weight within a float32 step of a border may fall to either side


def test_a_sketch_under_rounded_scales_is_refused(weight):
    with pytest.raises(QuantizationError, match="plain sketch"):
        LiveGrid(sketch(weight, "group:32", grid=parse_grid("mxfp4")))


def test_levels_travel_without_loss():
    grids = families.catalogue_grids()
    data, catalogue = transport.pack_levels(grids)
    values = np.frombuffer(data, dtype="<f8")
    for key, grid in grids.items():
        entry = catalogue[key]
        np.testing.assert_array_equal(values[entry["start"] : entry["middle"]], grid.levels)
        np.testing.assert_array_equal(values[entry["middle"] : entry["stop"]], grid.thresholds)
        assert entry["still"] is (grid.scale_format is not None)
    json.dumps(catalogue, allow_nan=False)


def test_an_all_zero_layer_shows_no_nan():
    live = LiveGrid.from_layer(np.zeros((4, 8), dtype=np.float32))
    assert live.message == ""
    assert live.exact["mse"] == 0.0
    assert np.isfinite(np.frombuffer(live.data, dtype="<f4")).all()
    json.dumps([live.exact, live.info], allow_nan=False)
    live.close()


def test_non_finite_weights_are_one_sentence_in_the_widget():
    broken = np.ones((4, 8), dtype=np.float32)
    broken[1, 2] = np.nan
    live = LiveGrid.from_layer(broken)
    assert "1 non-finite weight" in live.message
    assert live.exact == {"state": {"family": ""}}
    live.close()


def test_every_choice_is_labelled_in_the_markup(live):
    assert "{" not in live.markup.replace("{id}", "")
    for offered in families.CHOICES.values():
        for value, words in offered:
            assert f'<option value="{value}">{words}</option>' in live.markup
    for control in re.findall(r"<(?:select|input)[^>]*>", live.markup):
        if "checkbox" in control:
            continue
        labelled = "aria-label" in control or f'for="{re.search("id=.([^ ]+).[ >]", control)[1]}"' in live.markup
        assert labelled, control


def test_the_page_is_one_file_with_its_data(live, tmp_path):
    path = live.to_html(tmp_path / "page.html", title="A <grid> & more", note="From </script> a test.")
    text = path.read_text(encoding="utf-8")
    assert "<title>A &lt;grid&gt; &amp; more</title>" in text
    assert "From &lt;/script&gt; a test." in text
    assert not re.search(r"(?:src|href)\s*=|https?://", text)
    state = json.loads(re.search(r'id="state">(.*?)</script>', text, re.DOTALL)[1])
    assert state["traits"]["exact"]["state"] == live.state
    assert base64.b64decode(state["levels"]) == live.levels
    assert base64.b64decode(state["sketches"]["channel absmax"]["data"]) == live.data
    assert {"tensor absmax", "channel signed", "group:128 range"} <= set(state["sketches"])
    assert "mxfp4" not in state["traits"]["markup"]  # a page without a kernel cannot measure it
    assert 'value="nf4"' in state["traits"]["markup"]


def test_a_page_needs_a_layer_and_a_place(live, tmp_path):
    empty = LiveGrid()
    with pytest.raises(WorkbenchError, match="shows no layer yet"):
        empty.to_html(tmp_path / "page.html")
    empty.close()
    with pytest.raises(WorkbenchError, match="cannot write the page"):
        live.to_html(tmp_path / "no such folder" / "page.html")

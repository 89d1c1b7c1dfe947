"""The integer panel and Follow one number: what they show is what ``run_layer`` gives."""

from __future__ import annotations

import contextlib
import gc
import io
import re

import numpy as np
import pytest
from PIL import Image

from workbench.errors import WorkbenchError
from workbench.integer.layer_run import run_layer
from workbench.panels import FollowPanel, IntegerPanel, Session
from workbench.panels.follow_table import MOST_TERMS, shown_terms
from workbench.panels.integer_state import IntegerState
from workbench.resources import demo_path

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def panel(session):
    session.select(LAYER)
    made = IntegerPanel(session)
    assert made.wait(120)
    yield made
    made.close()


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.rsplit("</style>", maxsplit=1)[-1]))


def judge(panel: IntegerPanel, **changes):
    """Run the same layer on the same inputs without the panel."""
    state, session = panel.state, panel.session
    options = {
        "grid": session.grid,
        "granularity": session.granularity,
        "activation": state.activation,
        "semantics": state.semantics,
        "accumulator": None if state.accumulator == "auto" else state.accumulator,
        "kind": state.kind,
    }
    return run_layer(session.layer, state.inputs, **{**options, **changes})


def test_it_shows_the_run_of_the_layer_and_says_that_inputs_are_not_real(panel, session):
    run = judge(panel)
    np.testing.assert_array_equal(panel.state.run.codes, run.codes)
    assert f"{run.errors['integer vs float'].sqnr_db:.2f} dB" in words(panel.facts.value)
    assert f"the worst case needs {run.worst_case_bits} bits" in words(panel.facts.value)
    assert "Gaussian inputs, not the model's own" in panel.about.value
    assert panel.state.note in re.sub("&#x27;", "'", panel.about.value)
    _line, _fake, integer, _mark = panel.figure("outputs").data
    np.testing.assert_allclose(integer.y, run.integer[0], rtol=1e-6)
    assert panel.numbers()["inputs"] == "gaussian"


def test_two_semantics_are_compared_output_by_output(panel):
    panel.versus.value = "tosa-single"
    run = panel.state.run
    steps = run.off_by(panel.state.semantics, "tosa-single")
    bars = panel.figure("off_by").data[0]
    assert np.nansum(bars.y) == run.codes.size == sum(steps.values())
    assert f"{run.codes.size - steps.get(0, 0):,} of {run.codes.size:,}" in panel.figure("off_by").layout.title.text


def test_a_narrow_accumulator_overflows_and_says_so(panel):
    panel.accumulator.value = "int10:wrap"
    assert panel.wait(120)
    run = panel.state.run
    assert run.overflows > 0
    assert f"{run.overflows:,} additions left it" in words(panel.facts.value)
    assert "qwb-warn" in panel.facts.value
    np.testing.assert_array_equal(run.codes, judge(panel, accumulator="int10:wrap").codes)


def test_an_accumulator_that_refuses_leaves_its_sentence_and_no_numbers(panel):
    panel.accumulator.value = "int10"
    assert panel.wait(120)
    assert panel.state.run is None
    assert "needs" in panel.state.note
    assert panel.facts.value == ""
    assert "needs" in panel.about.value
    panel.accumulator.value = "int32"
    assert panel.wait(120)
    assert panel.state.run is not None
    assert panel.state.note == ""


@pytest.mark.parametrize("typed", ["bogus", "int", "int99", "16", "int16:maybe", "", "<b>"])
def test_nonsense_in_a_setting_changes_nothing_and_is_answered(panel, typed):
    run = panel.state.run
    panel.accumulator.value = typed
    assert panel.accumulator.value == "auto"
    assert panel.state.run is run
    assert "qwb-error" in panel.error_text
    panel.versus.value = "tosa-double"
    assert panel.error_text == ""


def test_inputs_of_a_grid_without_levels_are_refused_and_other_grids_follow_each_other(panel, session):
    state = panel.state
    before = state.activation
    state.activation = "bcq:bits=3"
    assert state.activation == before
    assert "no levels of its own" in session.message
    for grid in ("nf4", "mxfp4", "uniform:bits=7"):
        state.activation = grid
        assert (state.activation, panel.activation.value) == (grid, grid)
    assert panel.wait(120)
    assert str(panel.state.run.input.grid) == "uniform:bits=7"


def test_spaces_around_an_accumulator_are_no_error(panel):
    panel.accumulator.value = " int20:wrap "
    assert (panel.state.accumulator, panel.accumulator.value) == ("int20:wrap", "int20:wrap")
    assert "qwb-error" not in panel.about.value


def test_a_state_may_outlive_its_session():
    session = Session()
    state = IntegerState.of(session)
    state.show()
    session.close()
    del session
    gc.collect()
    with pytest.raises(WorkbenchError, match="has gone"):
        _ = state.session
    state.hide()


def test_what_follows_the_layer_runs_by_table_and_by_polynomial(panel):
    panel.then.value = "gelu"
    assert panel.wait(120)
    table = panel.state.run
    panel.kind.value = "polynomial"
    assert panel.wait(120)
    polynomial = panel.state.run
    np.testing.assert_array_equal(table.codes, judge(panel, then="gelu", kind="table").codes)
    np.testing.assert_array_equal(polynomial.codes, judge(panel, then="gelu", kind="polynomial").codes)
    assert np.abs(table.codes.astype(int) - polynomial.codes).max() <= 8


def test_a_click_follows_that_output_and_every_step_leads_to_its_code(panel, session):
    panel._output_clicked([5, 0.0])
    trace = panel.follow.trace
    assert (trace.row, trace.channel) == (0, 5)
    assert trace.code == panel.state.run.codes[0, 5]
    assert len(panel.follow.terms.rows) == len(trace.terms) == session.layer.weight.shape[1]
    assert panel.follow.terms.rows[-1][-1].split()[0] == str(int(trace.terms.partial_sum[-1]))
    panel.follow.terms.picked = 3
    assert str(int(trace.terms.product[3])) in words(panel.follow.term.value)
    assert f"code {trace.code}" in words(panel.follow.about.value)
    panel.follow.row.value = 7
    assert (panel.state.row, panel.follow.trace.row) == (7, 7)
    assert "row 7" in panel.figure("outputs").layout.title.text


def test_the_button_goes_from_one_disagreement_to_the_next(panel, session):
    run, follow = panel.state.run, panel.follow
    gap = np.argwhere(run.codes != run.codes_under(panel.state.versus))
    follow.differ.click()
    if len(gap) == 0:
        assert follow.differ.description == "They agree everywhere"
        return
    assert [panel.state.row, session.channel] in gap.tolist()
    assert f"{panel.state.versus} gives code" in words(follow.about.value)


def test_a_grid_changes_the_run_and_a_power_grid_has_rivals(panel, session):
    names = [name for name, _ in panel.state.rivals]
    assert "uniform, same bits" in names
    session.set_grid("uniform:bits=8")
    assert panel.wait(120)
    assert panel.state.rivals == ()
    np.testing.assert_array_equal(panel.state.run.codes, judge(panel, grid="uniform:bits=8").codes)


def test_code_runs_and_gives_the_panel_s_numbers(panel, session):
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(panel.code(), namespace)
        exec(panel.follow.code(), {})
    np.testing.assert_array_equal(namespace["run"].codes, panel.state.run.codes)
    assert str(panel.state.run.off_by("tflm", "onnxruntime")) in printed.getvalue()
    assert panel.follow.trace.steps[-1].formula in printed.getvalue()


def test_snapshot_is_a_picture_with_the_run_s_numbers(panel):
    for one in (panel, panel.follow):
        picture = Image.open(io.BytesIO(one.snapshot().png))
        assert picture.width >= 700
    assert panel.snapshot().numbers["worst_case_bits"] == panel.state.run.worst_case_bits
    assert panel.follow.snapshot().numbers["steps"][-1]["name"] == "value"


def test_closing_the_last_panel_ends_the_runs(session):
    first, second = IntegerPanel(session), FollowPanel(session)
    assert first.wait(120)
    first.close()
    run = second.state.run
    session.select("model.layers.1.mlp.down_proj")
    assert session.wait(120)
    assert second.state.run is not run
    second.close()
    gone = second.state.run
    session.select(LAYER)
    assert session.wait(120)
    assert IntegerState.of(session).run is gone


def test_settings_are_plain_data_and_come_back(panel, session):
    panel.then.value = "relu"
    spec = panel.state.to_spec()
    panel.then.value = "none"
    panel.state.from_spec(spec)
    assert panel.then.value == "relu"
    panel.state.from_spec({"colour": "red"})
    assert "colour" in session.message


def test_a_convolution_runs_on_the_digits_it_was_made_for():
    session = Session(demo_path("tiny-resnet"), sweep=False)
    try:
        names = [name for name, layer in session.model.layers.items() if layer.kind == "conv"]
        session.select(names[1])
        panel = IntegerPanel(session)
        assert panel.wait(240), session.message
        assert panel.state.note == ""
        assert panel.state.inputs.origin == "real"
        assert panel.state.run.window is not None
        panel._output_clicked([2])
        assert panel.follow.trace.code == panel.state.run.codes[0, 2]
        panel.close()
    finally:
        session.close()


def test_very_long_sums_show_both_ends():
    numbers = shown_terms(3 * MOST_TERMS)
    assert numbers[: MOST_TERMS + 1] == [*range(MOST_TERMS), None]
    assert numbers[-1] == 3 * MOST_TERMS - 1
    assert shown_terms(3) == [0, 1, 2]

"""The methods panel: what it shows is what ``quantize_layer`` gives; a stopped run keeps what was done."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from workbench.calibration.layer_inputs import gaussian_inputs
from workbench.grids import parse_grid
from workbench.methods.layer import quantize_layer
from workbench.methods.method import METHODS, Method, Outcome, all_methods
from workbench.methods.run import Recorder
from workbench.panels import Session
from workbench.panels.long_run import duration
from workbench.panels.methods_panel import MethodsPanel
from workbench.panels.methods_state import ROWS, MethodsState, grid_for
from workbench.panels.methods_table import table_lines
from workbench.panels.sortable_table import Cell
from workbench.resources import demo_path

LAYER = "model.layers.0.mlp.up_proj"

#: Held by a test while the slow method shall stand still.
_gate = threading.Event()
_started = threading.Event()


@dataclass(frozen=True)
class Slow(Method):
    """Halves its loss step by step, and waits in the middle until the test opens the gate."""

    word: ClassVar[str] = "slow-for-tests"
    title: ClassVar[str] = "Slow"
    summary: ClassVar[str] = "waits"
    steps: int = 40

    @property
    def steps_planned(self):
        return self.steps

    def _quantize(self, task, run):
        recorder = Recorder(run, task.name, self.steps)
        for step in range(self.steps + 1):
            recorder.record(step, 2.0 ** -min(step, 50))
            if step < 3:
                time.sleep(0.06)  # listeners are told at most twenty times a second
            if step == self.steps // 2:
                _started.set()
                while not _gate.wait(0.02):
                    run.progress(0.5, "waiting")
        return Outcome(task.start, recorder.trace(), notes=("a note",))


@pytest.fixture
def panel(session):
    session.select(LAYER)
    made = MethodsPanel(session)
    yield made
    _gate.set()
    made.close()


@pytest.fixture
def slow(monkeypatch):
    all_methods()
    monkeypatch.setitem(METHODS, "slow-for-tests", Slow())
    _gate.clear()
    _started.clear()
    return "slow-for-tests"


def run(panel, *methods):
    panel.state.methods = methods
    panel.run_bar.run.click()
    assert panel.wait(120)


def test_it_shows_what_quantize_layer_gives_and_says_that_inputs_are_not_real(panel, session):
    run(panel, "rtn", "rtn-clip")
    inputs = gaussian_inputs(session.layer, rows=ROWS)
    for outcome in panel.state.results.values():
        judge = quantize_layer(session.layer, outcome.method, session.grid, inputs=inputs.values)
        assert outcome.sqnr_db == pytest.approx(judge.sqnr_db, rel=1e-12)
        assert outcome.bits_per_weight == judge.bits_per_weight
    cells = [[cell[0] for cell in cells] for cells, _ in panel.table.rows]
    assert [row[1] for row in cells] == ["RTN", "RTN + clip"]
    assert cells[0][5] == "+0.00"
    assert all("Gaussian inputs" in note for _, note in panel.table.rows)
    assert panel.state.status == "done"
    assert "2 results" in panel.run_bar.text.value


def test_the_best_is_marked_by_a_sign_and_picked(panel):
    run(panel, "rtn", "rtn-clip")
    best = [cells[4][2] for cells, _ in panel.table.rows]
    outcomes = list(panel.state.results.values())
    assert best == [each.sqnr_db == max(other.sqnr_db for other in outcomes) for each in outcomes]
    assert panel.table.picked == best.index(True)
    assert any(line.startswith("★") or "\t★" in line for line in panel.table.lines)


def test_histograms_hold_every_weight_before_and_after(panel, session):
    run(panel, "rtn", "rtn-clip")
    panel.table.picked = 0
    outcome = panel.state.results[panel.state.picked]
    assert outcome.method == "rtn"
    true = np.asarray(session.layer.weight[:], dtype=np.float32)
    assert outcome.before.sum() == outcome.after.sum() == true.size
    np.testing.assert_array_equal(outcome.before, np.histogram(true, outcome.edges)[0])
    np.testing.assert_allclose(outcome.levels, session.grid.levels)
    assert outcome.shares.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(outcome.shares, outcome.nearest_shares)
    assert outcome.changed == 0.0
    assert "RTN" in panel.figure("weights").layout.title.text
    panel.table.picked = 1
    assert panel.state.results[panel.state.picked].changed > 0.0


def test_curves_grow_while_a_method_learns_and_stop_keeps_what_is_done(panel, slow):
    panel.state.methods = ("rtn", slow)
    panel.run_bar.run.click()
    assert _started.wait(60)
    assert panel.state.running
    assert not panel.run_bar.halt.disabled
    panel.run_bar.halt.click()
    assert panel.wait(60)
    assert panel.state.status == "stopped"
    assert [each.method for each in panel.state.results.values()] == ["rtn"]
    assert "1 result kept" in panel.run_bar.text.value
    (curve,) = panel.figure("curves").data
    assert curve.name == "Slow"
    assert curve.y[0] == 1.0
    assert np.all(np.diff(curve.y) <= 0)


def test_a_finished_curve_is_the_method_s_own_trace(panel, slow):
    _gate.set()
    run(panel, slow)
    (curve,) = panel.figure("curves").data
    np.testing.assert_array_equal(curve.x, np.arange(41))
    np.testing.assert_allclose(curve.y, 2.0 ** -np.arange(41.0), rtol=1e-6)
    assert "a note" in panel.table.rows[0][1]


def test_the_budget_of_steps_reaches_methods_that_learn_and_no_others(panel, slow):
    _gate.set()
    panel.steps.value = 6
    run(panel, "rtn", slow)
    assert [each.method for each in panel.state.results.values()] == ["rtn", "slow-for-tests:steps=6"]
    assert panel.figure("curves").data[0].x[-1] == 6


def test_the_session_s_own_cancel_stops_it_too(panel, session, slow):
    panel.state.methods = (slow,)
    panel.run_bar.run.click()
    assert _started.wait(60)
    session.cancel()
    assert panel.wait(60)
    assert panel.state.status == "stopped"


def test_opening_another_model_ends_the_run_and_leaves_nothing_of_it(panel, session, checkpoint, slow):
    panel.state.methods = ("rtn", slow)
    panel.run_bar.run.click()
    assert _started.wait(60)
    session.open(checkpoint)
    assert session.wait(60)
    assert panel.state.status == "idle"
    assert panel.state.results == {}
    assert panel.run_bar.halt.disabled


def test_a_pattern_runs_on_every_layer_it_names(panel):
    panel.pattern.value = "*.mlp.up_proj"
    run(panel, "rtn")
    assert [each.layer for each in panel.state.results.values()] == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert "2 layers" in panel.plan.value


@pytest.mark.parametrize("typed", ["nothing.like.this", "*.norm*", "["])
def test_a_pattern_that_names_no_layer_is_refused_in_one_sentence(panel, typed):
    panel.pattern.value = typed
    assert panel.pattern.value == panel.state.pattern == ""
    assert "matches none" in panel.error_text


@pytest.mark.parametrize("typed", ["bogus", "rtn:colour=red", "nupes:steps=often", "<b>"])
def test_a_method_that_cannot_be_read_changes_nothing(panel, typed):
    before = panel.state.methods
    panel.choice.extra.value = typed
    panel.choice.add.click()
    assert panel.state.methods == before
    assert "qwb-error" in panel.choice.error.value
    assert "<b>" not in panel.choice.error.value
    panel.run_bar.run.click()
    assert not panel.state.running


def test_nonsense_in_the_state_changes_nothing(panel, session):
    for name, value in [("steps", -1), ("steps", 1.5), ("seed", "x"), ("grids", "round"), ("methods", "rtn")]:
        before = getattr(panel.state, name)
        setattr(panel.state, name, value)
        assert getattr(panel.state, name) == before
        assert session.message


def test_a_method_that_cannot_run_leaves_its_sentence_and_the_others_run(panel, session):
    session.granularity = "group:24"  # divides no layer of this model evenly
    run(panel, "rtn", "rtn-clip")
    assert panel.state.status == "done"
    assert len(panel.table.rows) == 2


def test_no_method_and_no_model_are_answered_in_one_sentence(panel, session):
    panel.state.methods = ()
    panel.run_bar.run.click()
    assert "choose at least one method" in panel.error_text
    assert not panel.state.running


def test_each_method_gets_a_grid_it_can_use():
    class Power:
        word = "nupes"

    class Other:
        word = "gptq"

    uniform, power = parse_grid("uniform:bits=3"), parse_grid("power:bits=4,exponent=0.5")
    assert grid_for(Power, uniform) == "power:bits=3,exponent=search"
    assert grid_for(Power, power) == "power:bits=4,exponent=search"
    assert grid_for(Other, uniform) == str(uniform)
    assert grid_for(Other, power) == str(power)
    assert grid_for(Other, power, "uniform") == "uniform:bits=4"
    assert grid_for(Other, uniform, "power") == "power:bits=3,exponent=search"


def test_code_runs_and_gives_the_panel_s_numbers(panel):
    run(panel, "rtn", "rtn-clip")
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(panel.code(), namespace)
    for outcome in panel.state.results.values():
        assert namespace["results"][outcome.layer, outcome.method].error == outcome.output_error
    assert "RTN" in printed.getvalue() or "rtn" in printed.getvalue()


def test_a_result_goes_into_the_recipe_with_its_grid_and_method(panel, session):
    from workbench.panels.recipe_state import RecipeState

    run(panel, "rtn", "rtn-clip")
    panel.use.click()
    entry = RecipeState.of(session).recipe.for_layer(LAYER)
    assert entry.method == panel.state.results[panel.state.picked].method
    assert entry.weight == str(session.grid)
    other = RecipeState.of(session).recipe.for_layer("model.layers.1.mlp.up_proj")
    assert other.method != entry.method
    assert "in the recipe" in panel.said.value


def test_results_survive_another_layer_and_go_with_the_model(panel, session, checkpoint):
    run(panel, "rtn")
    session.select("model.layers.1.mlp.down_proj")
    assert len(panel.table.rows) == 1
    session.open(checkpoint)
    assert session.wait(60)
    assert panel.table.rows == []


def test_snapshot_is_a_picture_with_the_results(panel):
    run(panel, "rtn")
    snapshot = panel.snapshot()
    assert Image.open(io.BytesIO(snapshot.png)).width >= 700
    assert snapshot.numbers["results"][0]["method"] == "rtn"


def test_a_run_that_never_began_can_be_stopped(panel):
    state = MethodsState.of(panel.session)
    state.stop()
    assert state.status == "idle"
    assert table_lines([]) == []


def test_cells_for_people_and_their_sorting_keys():
    assert Cell("exact", float("inf")).plain()[1] == 1e300
    assert Cell("–", float("nan")).plain()[1] is None
    assert duration(0.4) == "0.4 s"
    assert duration(float("inf")) == "?"


def test_a_convolution_runs_on_the_digits_it_was_made_for_and_its_code_gives_the_same():
    session = Session(demo_path("tiny-resnet"), sweep=False)
    try:
        assert session.wait(120)
        session.select(next(name for name, layer in session.model.layers.items() if layer.kind == "conv"))
        panel = MethodsPanel(session)
        run(panel, "rtn", "gptq")
        outcomes = {each.method: each for each in panel.state.results.values()}
        assert all(not each.origin and not each.error for each in outcomes.values())
        assert outcomes["gptq"].output_error < outcomes["rtn"].output_error
        namespace = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(panel.code(), namespace)
        for (_, method), result in namespace["results"].items():
            assert result.error == outcomes[method].output_error
        panel.close()
    finally:
        session.close()


def test_embeddings_run_on_gaussian_inputs_and_norms_are_refused_in_one_sentence(panel, session):
    session.select("model.embed_tokens")
    run(panel, "rtn")
    (outcome,) = panel.state.results.values()
    assert outcome.origin
    session.select("model.norm")
    run(panel, "rtn")
    assert panel.state.status == "failed"
    assert "qwb-error" in panel.run_bar.text.value
    assert len(panel.state.results) == 1

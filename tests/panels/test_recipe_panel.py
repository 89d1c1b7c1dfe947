"""The recipe panel: each cell checked on entry, the bits counted honestly, the model quantized as the rows say."""

from __future__ import annotations

import contextlib
import io

import pytest
from PIL import Image

from workbench.panels import Session
from workbench.panels.recipe_panel import RecipePanel, bits_html
from workbench.panels.recipe_plan import plan_recipe
from workbench.panels.recipe_state import FIELDS, RecipeState
from workbench.quantization.bits import storage
from workbench.quantization.recipe import Recipe
from workbench.resources import demo_path

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def panel(session):
    made = RecipePanel(session)
    yield made
    made.close()


def texts(panel):
    return [row[0] for row in panel.table.rows]


def edit(panel, row, field, value):
    panel.table.ask("edit", row, FIELDS.index(field), value)


def test_it_starts_with_the_session_s_grid_rounded_to_nearest(panel, session):
    assert texts(panel) == [["*", str(session.grid), "channel", "absmax", "float", "rtn"]]
    assert panel.table.rows[0][1] == "5 layers"


def test_the_bits_are_what_storage_counts_with_all_that_is_left_alone(panel, session):
    plan = panel.state.plan()
    model = session.model
    quantized = {name for name, layer in model.layers.items() if layer.kind == "linear"}
    assert {each.name for each in plan.quantized} == quantized
    bits = sum(
        storage(session.grid, "channel", layer.shape).total if name in quantized else 16 * layer.parameters
        for name, layer in model.layers.items()
    )
    weights = sum(layer.parameters for layer in model.layers.values())
    assert plan.bits_per_weight == pytest.approx(bits / weights)
    assert f"{plan.bits_per_weight:.3f}" in panel.bits.value
    assert 0.5 < plan.quantized_share < 1.0
    assert f"{plan.quantized_bits_per_weight:.3f} bits per weight" in panel.bits.value


def test_later_rows_override_earlier_ones_layer_by_layer(panel):
    panel.table.ask("add")
    edit(panel, 1, "pattern", "*.up_proj")
    edit(panel, 1, "weight", "uniform:bits=2")
    edit(panel, 1, "method", "rtn-clip")
    got = {each.name: (each.weight, each.method) for each in panel.state.plan().quantized}
    assert got[UP] == ("uniform:bits=2", "rtn-clip")
    assert got["model.layers.0.mlp.down_proj"][1] == "rtn"
    assert panel.table.rows[1][1] == "2 layers"
    panel.table.ask("up", 1)
    assert [row[0] for row in texts(panel)] == ["*.up_proj", "*"]
    assert {each.weight for each in panel.state.plan().quantized} == {texts(panel)[1][1]}
    panel.table.ask("remove", 0)
    assert [row[0] for row in texts(panel)] == ["*"]


def test_an_embedding_is_quantized_only_where_a_row_names_it(panel):
    panel.table.ask("add")
    edit(panel, 1, "pattern", "*.embed_tokens")
    assert "model.embed_tokens" in {each.name for each in panel.state.plan().quantized}
    edit(panel, 1, "weight", "float")
    assert "model.embed_tokens" not in {each.name for each in panel.state.plan().quantized}


@pytest.mark.parametrize(
    ("field", "typed"),
    [
        ("weight", "uniform:bits=99"),
        ("weight", "<img src=x>"),
        ("granularity", "group:-3"),
        ("scale", "percentile:900"),
        ("activation", "int3:maybe"),
        ("method", "nupe"),
        ("method", "rtn:colour=red"),
        ("pattern", "   "),
    ],
)
def test_nonsense_in_a_cell_changes_nothing_and_is_answered_beside_it(panel, field, typed):
    before, rows = panel.state.recipe, texts(panel)
    edit(panel, 0, field, typed)
    assert panel.state.recipe is before
    assert texts(panel) == rows
    refused = panel.table.refused
    assert (refused["row"], refused["column"]) == (0, FIELDS.index(field))
    assert refused["sentence"]
    assert "\n" not in refused["sentence"]
    edit(panel, 0, "granularity", "tensor")
    assert panel.table.refused == {}


def test_asking_for_cells_and_rows_that_do_not_exist_changes_nothing(panel):
    before = panel.state.recipe
    for asked in (("edit", 7, 1, "nf4"), ("edit", 0, 99, "nf4"), ("remove", 9), ("up", 0), ("remove", 0)):
        panel.table.ask(*asked)
        assert panel.state.recipe == before


def test_an_emptied_cell_leaves_the_setting_to_the_rows_before(panel):
    panel.table.ask("add")
    edit(panel, 1, "pattern", UP)
    edit(panel, 1, "weight", "nf4")
    edit(panel, 1, "weight", "")
    assert panel.state.recipe.entries[1].weight is None
    assert panel.state.recipe.for_layer(UP).weight == texts(panel)[0][1]


def test_presets_fill_the_table(panel):
    panel.preset.value = "w4-rtn-clip"
    assert panel.state.recipe == Recipe.of("w4-rtn-clip")
    assert texts(panel)[0][5] == "rtn-clip"
    edit(panel, 0, "scale", "mse")
    assert panel.preset.value == ""  # it is not that preset any more


def test_a_recipe_is_saved_and_loaded_and_bad_files_change_nothing(panel, tmp_path):
    edit(panel, 0, "weight", "nf4")
    panel.path.value = str(tmp_path / "recipe.yaml")
    panel.save.click()
    assert "written to" in panel.said.value
    saved = panel.state.recipe
    panel.preset.value = "w8a8"
    panel.load.click()
    assert panel.state.recipe == saved
    (tmp_path / "bad.yaml").write_text("entries: [")
    for path in ("bad.yaml", "missing.yaml"):
        panel.path.value = str(tmp_path / path)
        panel.load.click()
        assert panel.state.recipe == saved
        assert "qwb-error" in panel.error_text
    panel.path.value = " "
    panel.load.click()
    assert "type the path" in panel.error_text


def test_without_a_model_it_still_edits_and_says_what_is_missing():
    session = Session()
    try:
        panel = RecipePanel(session)
        edit(panel, 0, "weight", "nf4")
        assert texts(panel)[0][1] == "nf4"
        assert "Open a model" in panel.bits.value
        panel.run_bar.run.click()
        assert "open a model first" in panel.error_text
        panel.close()
    finally:
        session.close()


def test_a_row_that_matches_nothing_is_marked_and_refused_when_run(panel, session):
    panel.table.ask("add")
    edit(panel, 1, "pattern", "*.nothing")
    assert panel.table.rows[1][1:] == ["0 layers", "warn"]
    panel.run_bar.run.click()
    assert not panel.state.running
    assert "matches no layer" in panel.error_text


def test_settings_refuse_nonsense(panel, session):
    for name, value in (("samples", 0), ("samples", "many"), ("seed", -1), ("recipe", "no such recipe")):
        before = getattr(panel.state, name)
        setattr(panel.state, name, value)
        assert getattr(panel.state, name) == before
        assert session.message


def test_an_empty_plan_says_so():
    assert "Open a model" in bits_html(plan_recipe(None, Recipe()))


def test_snapshot_has_rows_and_numbers(panel):
    snapshot = panel.snapshot()
    assert Image.open(io.BytesIO(snapshot.png)).width >= 800
    assert snapshot.numbers["recipe"]["entries"][0]["layers"] == "*"


# ---------------------------------------------------------------------- the model quantized by the rows


@pytest.fixture(scope="module")
def resnet():
    session = Session(demo_path("tiny-resnet"), sweep=False)
    assert session.wait(120)
    panel = RecipePanel(session)
    panel.preset.value = "w4-rtn-clip"
    yield panel
    panel.close()
    session.close()


def test_quantize_model_gives_what_the_function_gives_layer_by_layer(resnet):
    from workbench.methods.runner import quantize_model

    resnet.run_bar.run.click()
    assert resnet.wait(240)
    state = resnet.state
    assert state.status == "done", state.doing
    assert state.fresh
    judge = quantize_model(resnet.session.model, "w4-rtn-clip")
    assert {name: each.error for name, each in state.results.items()} == {
        name: each.error for name, each in judge.layers.items()
    }
    assert state.quantized.bits_per_weight == judge.bits_per_weight
    assert f"{judge.bits_per_weight:.3f}" in resnet.run_bar.text.value
    plan = {each.name: each for each in state.plan().quantized}
    assert set(plan) == set(judge.layers)
    for name, each in judge.layers.items():
        assert plan[name].bits_per_weight == pytest.approx(each.bits_per_weight)
    shown = {cells[0][0]: cells[4][0] for cells, _ in resnet.layers.rows}
    assert all(shown[name] not in {"", "…"} for name in judge.layers)


def test_an_edit_makes_the_quantized_model_stale_but_keeps_it(resnet):
    state = resnet.state
    before = state.quantized
    edit(resnet, 0, "weight", "uniform:bits=3")
    assert not state.fresh
    assert state.quantized is before
    edit(resnet, 0, "weight", "uniform:bits=4")


def test_code_runs_and_gives_the_panel_s_numbers(resnet):
    for text in ("rtn-clip", "gptq"):
        edit(resnet, 0, "method", text)
        assert ("Calibration.from_images" in resnet.code()) == (text == "gptq")
    edit(resnet, 0, "method", "rtn-clip")
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(resnet.code(), namespace)
    for name, result in namespace["quantized"].layers.items():
        assert result.error == resnet.state.results[name].error


def test_methods_with_inputs_are_calibrated_and_stop_keeps_finished_layers(resnet):
    state = RecipeState.of(resnet.session)
    edit(resnet, 0, "method", "gptq")
    state.samples = 8
    finished = []

    def stop_after_two(_change):
        finished.append(len(state.results))
        if len(state.results) == 2:
            state.stop()

    state.observe(stop_after_two, "results")
    resnet.run_bar.run.click()
    assert resnet.wait(240)
    state.unobserve(stop_after_two, "results")
    assert state.status == "stopped"
    assert len(state.results) == 2
    assert "2 layers kept" in resnet.run_bar.text.value
    assert state.quantized is None


def test_transforms_are_checked_and_belong_to_the_recipe(panel):
    panel.transforms.value = "smoothquant:alpha=0.5 ; rotation"
    assert panel.state.recipe.transforms == ("smoothquant:alpha=0.5", "rotation")
    assert panel.transforms.value == "smoothquant:alpha=0.5; rotation"
    panel.transforms.value = "smoothie"
    assert panel.state.recipe.transforms == ("smoothquant:alpha=0.5", "rotation")
    assert "qwb-error" in panel.error_text
    panel.transforms.value = ""
    assert panel.state.recipe.transforms == ()
    assert panel.error_text == ""
    panel.preset.value = "w8a8-smoothquant"
    assert "smoothquant" in panel.transforms.value


def test_calibrated_methods_give_the_function_s_numbers_and_their_code_too(resnet):
    state = RecipeState.of(resnet.session)
    edit(resnet, 0, "method", "gptq")
    state.samples, state.seed = 8, 3
    resnet.run_bar.run.click()
    assert resnet.wait(240)
    assert state.status == "done", state.doing
    assert "outputs on" in resnet.layers.caption
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(resnet.code(), namespace)
    assert {name: each.error for name, each in namespace["quantized"].layers.items()} == {
        name: each.error for name, each in state.results.items()
    }


def test_a_run_with_a_folder_goes_on_from_its_finished_layers(resnet, tmp_path):
    state = RecipeState.of(resnet.session)
    resnet.preset.value = "w4-rtn-clip"
    resnet.output.value = str(tmp_path / "out")
    assert f"output={state.output!r}" in resnet.code()
    resnet.run_bar.run.click()
    assert resnet.wait(240)
    assert state.status == "done", state.doing
    assert list((tmp_path / "out").glob("*.safetensors"))
    before = {name: each.error for name, each in state.results.items()}
    resnet.run_bar.run.click()
    assert resnet.wait(240)
    assert {name: each.error for name, each in state.results.items()} == before
    resnet.output.value = ""

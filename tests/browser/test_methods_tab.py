"""Methods, Recipe and Evaluate in JupyterLab: run, stop, compare, take into the recipe, edit, quantize, measure, reload."""

from __future__ import annotations

import re

import pytest
from live_driver import LivePanel, cut_off
from playwright.sync_api import expect

import workbench
from workbench.methods.layer import quantize_layer
from workbench.resources import demo_path

TAB = "Methods"
LAYER = "model.layers.0.self_attn.v_proj"
PATIENCE = 90_000  # ms: the first run loads the model and its text


@pytest.fixture(scope="module")
def page(tab_page):
    """The workbench with its methods tab in front, on one small layer."""
    return tab_page


def results(page):
    return page.get_by_role("grid").filter(has_text="Results (click a row")


def row(page, method: str):
    return results(page).locator("tr.wbs-row").filter(has=page.get_by_text(method, exact=True))


def set_number(page, name: str, value: int):
    field = page.get_by_role("spinbutton", name=name)
    field.fill(str(value))
    field.press("Enter")


def test_two_methods_run_and_show_what_python_gives(page):
    page.get_by_role("checkbox", name="NUPES", exact=True).check()
    set_number(page, "Steps", 4)
    expect(page.get_by_text("NUPES on")).to_be_visible()
    page.get_by_role("button", name="Run methods").click()
    expect(page.get_by_text("3 results in")).to_be_visible(timeout=PATIENCE)
    model = workbench.open_model(demo_path("tiny-gemma3"))
    inputs = workbench.layer_inputs(model, model[LAYER], rows=1024)
    judge = quantize_layer(model[LAYER], "rtn-clip", "power:bits=4,exponent=0.55", inputs=inputs.values)
    model.close()
    expect(row(page, "RTN + clip")).to_contain_text(f"{judge.sqnr_db:.2f}")
    expect(row(page, "RTN + clip")).to_contain_text(f"{judge.bits_per_weight:.3f}")
    curves = page.locator(".js-plotly-plot").filter(has_text="Loss, lower is better")
    expect(curves.locator(".scatterlayer .trace")).to_have_count(1)
    expect(results(page).locator(".wbs-best")).to_have_count(1)
    page.lab.screenshot("methods-panel", ".qwb-tabs")


def test_rows_are_picked_by_keyboard_and_columns_sort(page):
    first = results(page).locator("tr.wbs-row").first
    first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".gtitle", has_text="Weights before and after RTN")).to_have_count(1)
    heading = results(page).get_by_role("button", name="output SQNR / dB")
    heading.press("Enter")
    expect(results(page).get_by_role("columnheader", name="output SQNR / dB")).to_have_attribute(
        "aria-sort", "descending"
    )
    expect(results(page).locator("tr.wbs-row").first.locator(".wbs-best")).to_have_count(1)
    heading = results(page).get_by_role("button", name="output SQNR / dB")
    heading.press("Enter")
    heading.press("Enter")
    expect(results(page).get_by_role("columnheader", name="output SQNR / dB")).to_have_attribute("aria-sort", "none")


@pytest.mark.parametrize("typed", ["nonsense", "nupes:steps=often", "<img src=x onerror=alert(1)>"])
def test_nonsense_is_answered_in_one_sentence_and_nothing_is_lost(page, typed):
    box = page.get_by_label("Another")
    box.fill(typed)
    page.get_by_role("button", name="Add", exact=True).click()
    alert = page.get_by_role("alert").filter(has_text=re.compile("nonsense|often|img")).first
    expect(alert).to_be_visible()
    expect(results(page).locator("tr.wbs-row")).to_have_count(3)
    box.fill("")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(alert).to_be_hidden()


def test_stop_in_the_middle_keeps_what_is_done(page):
    for name in ("RTN", "RTN + clip", "NUPES"):
        page.get_by_role("checkbox", name=name, exact=True).uncheck()
    page.get_by_label("Another").fill("nupes:steps=5000")
    page.get_by_role("button", name="Add", exact=True).click()
    set_number(page, "Steps", 0)
    expect(page.get_by_role("button", name="nupes:steps=5000 ✕")).to_be_visible()
    page.get_by_role("button", name="Run methods").click()
    expect(page.get_by_text(re.compile("NUPES on .* left"))).to_be_visible(timeout=PATIENCE)
    curves = page.locator(".js-plotly-plot").filter(has_text="Loss, lower is better")
    expect(curves.locator(".scatterlayer .trace")).to_have_count(2, timeout=PATIENCE)
    page.get_by_role("tabpanel").get_by_role("button", name="Stop").locator("visible=true").click()
    expect(page.get_by_text("stopped · 3 results kept")).to_be_visible()
    expect(results(page).locator("tr.wbs-row")).to_have_count(3)


def test_a_result_goes_into_the_recipe(page):
    row(page, "RTN + clip").click()
    page.get_by_role("button", name="Use in recipe").click()
    expect(page.get_by_text("RTN + clip is in the recipe")).to_be_visible()
    page.get_by_role("tab", name="Recipe", exact=True).click()
    expect(page.get_by_label("layers of row 2")).to_have_value(LAYER)
    expect(page.get_by_label("method of row 2")).to_have_value("rtn-clip")
    expect(page.get_by_text("in the whole model")).to_be_visible()


def test_a_cell_is_checked_on_entry(page):
    cell = page.get_by_label("weight grid of row 1")
    before = cell.input_value()
    cell.fill("uniform:bits=99")
    cell.press("Enter")
    alert = page.get_by_role("alert").filter(has_text="99")
    expect(alert).to_be_visible()
    expect(cell).to_have_value(before)
    expect(cell).to_have_attribute("aria-invalid", "true")
    cell.fill("uniform:bits=5")
    cell.press("Enter")
    expect(page.get_by_text("uniform:bits=5 · channel · absmax · rtn").first).to_be_visible()
    expect(alert).to_be_hidden()
    expect(cell).to_be_focused()
    cell = page.get_by_label("granularity of row 1")
    cell.fill("CHANNEL ")  # read as what it says already
    cell.press("Enter")
    expect(cell).to_have_value("channel")


def test_rows_are_added_moved_and_removed(page):
    page.get_by_role("button", name="+ Add a row").click()
    expect(page.get_by_label("layers of row 2")).to_have_value(LAYER)
    expect(page.get_by_label("layers of row 3")).to_have_value(LAYER)
    page.get_by_role("button", name="Remove row 3").click()
    expect(page.get_by_label("layers of row 3")).to_have_count(0)
    page.get_by_role("button", name="Move row 2 up").click()
    expect(page.get_by_label("layers of row 1")).to_have_value(LAYER)
    page.get_by_role("button", name="Move row 1 down").click()
    expect(page.get_by_label("layers of row 2")).to_have_value(LAYER)


def test_the_model_is_quantized_and_every_layer_shows_its_error(page):
    page.get_by_role("button", name="Quantize model").click()
    expect(page.get_by_text(re.compile(r"42 layers in .* bits per weight"))).to_be_visible(timeout=PATIENCE)
    layers = page.get_by_role("table").filter(has_text="What each layer gets")
    line = layers.locator("tr.wbs-row").filter(has=page.get_by_text(LAYER, exact=True))
    expect(line).to_contain_text(re.compile(r"rtn-clip.*4\.125.*\+\d"))
    page.lab.screenshot("recipe-panel", ".qwb-tabs")


def test_float_and_recipe_are_measured_and_write_side_by_side(page):
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    set_number(page, "Tokens scored at most", 128)
    page.get_by_role("button", name="Evaluate", exact=True).click()
    expect(page.get_by_text("3 figures in")).to_be_visible(timeout=PATIENCE)
    table = page.get_by_role("table").filter(has_text="difference")
    line = table.locator("tr.wbs-row").filter(has=page.get_by_text("Perplexity", exact=True))
    expect(line).to_contain_text(re.compile(r"\d+\.\d+.*\d+\.\d+.*[+−]\d"))
    set_number(page, "New tokens", 12)
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.get_by_text("tokens in")).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".qwb-written pre")).to_have_count(2)
    expect(page.get_by_text(re.compile("first difference is token|The same"))).to_be_visible()
    page.lab.screenshot("evaluate-panel", ".qwb-tabs")


@pytest.mark.parametrize("tab", ["Methods", "Recipe", "Evaluate"])
def test_nothing_is_cut_off(page, tab):
    page.get_by_role("tab", name=tab, exact=True).click()
    wider = {}
    for width in (1000, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 1000})
        wider[width] = cut_off(page, ".qwb-panel")
        page.lab.screenshot(f"{tab.lower()}-{width}", ".qwb-tabs")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert wider == {1000: [], 1280: [], 1920: []}


def test_dark_theme_and_no_errors(page):
    page.lab.theme("JupyterLab Dark")
    page.get_by_role("tab", name="Methods", exact=True).click()
    title = page.locator(".gtitle", has_text="Loss, lower is better")
    expect(title).to_have_css("fill", "rgb(230, 230, 230)")
    page.lab.screenshot("methods-dark", ".qwb-tabs")
    page.lab.theme("JupyterLab Light")
    assert page.lab.errors == []


def test_reload_brings_results_recipe_and_figures_back(page):
    page.lab.command("docmanager:save")
    page.lab.reload(".wb-live")
    LivePanel(page).wait()
    page.get_by_role("tab", name="Methods", exact=True).click()
    expect(results(page).locator("tr.wbs-row")).to_have_count(3, timeout=PATIENCE)
    page.get_by_role("tab", name="Recipe", exact=True).click()
    expect(page.get_by_label("weight grid of row 1")).to_have_value("uniform:bits=5")
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    expect(page.get_by_role("table").filter(has_text="difference").locator("tr.wbs-row")).to_have_count(3)

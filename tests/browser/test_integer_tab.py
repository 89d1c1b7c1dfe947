"""The integer tab in JupyterLab: run a layer, type nonsense, follow a number by mouse and keyboard."""

from __future__ import annotations

import re

import pytest
from live_driver import LivePanel, cut_off
from playwright.sync_api import expect

import workbench
from workbench.calibration.layer_inputs import layer_inputs
from workbench.integer import run_layer
from workbench.resources import demo_path

TAB = "Integer"
LAYER = "model.layers.0.mlp.down_proj"
PATIENCE = 90_000  # ms: the first run loads the model and its text


@pytest.fixture(scope="module")
def page(tab_page):
    """The workbench with its integer tab in front, on one layer."""
    return tab_page


@pytest.fixture(scope="module")
def run():
    """The same run in this process."""
    model = workbench.open_model(demo_path("tiny-gemma3"))
    layer = model[LAYER]
    yield run_layer(layer, layer_inputs(model, layer), grid="power:bits=4,exponent=0.55", semantics="tflm")
    model.close()


def fact(page, name: str):
    return (
        page.locator("table.qwb-two tr").filter(has=page.locator("th", has_text=re.compile(f"^{name}$"))).locator("td")
    )


def test_the_tab_shows_the_same_run_as_python(page, run):
    expect(fact(page, "from float")).to_contain_text(
        f"integer {run.errors['integer vs float'].sqnr_db:.2f} dB", timeout=PATIENCE
    )
    expect(fact(page, "accumulator")).to_contain_text(f"the worst case needs {run.worst_case_bits} bits")
    expect(page.get_by_text("real inputs")).to_be_visible()
    steps = run.off_by("tflm", "onnxruntime")
    differing = sum(steps.values()) - steps[0]
    expect(page.locator(".gtitle", has_text="tflm against onnxruntime")).to_contain_text(f"{differing:,} of")
    page.lab.screenshot("integer-panel", ".qwb-tabs")


def test_another_semantics_and_a_narrow_accumulator(page, run):
    page.get_by_role("combobox", name="against").select_option("tosa-single")
    steps = run.off_by("tflm", "tosa-single")
    differing = sum(steps.values()) - steps.get(0, 0)
    expect(page.locator(".gtitle", has_text="against tosa-single")).to_contain_text(f"{differing:,} of")
    page.get_by_role("combobox", name="against").select_option("onnxruntime")
    box = page.get_by_label("Accumulator")
    box.fill("int12:wrap")
    box.press("Enter")
    expect(fact(page, "accumulator")).to_contain_text("additions left it", timeout=PATIENCE)


@pytest.mark.parametrize("typed", ["nonsense", "int99", "<img src=x onerror=alert(1)>"])
def test_nonsense_is_answered_in_one_sentence_and_nothing_is_lost(page, typed):
    box = page.get_by_label("Accumulator")
    before = box.input_value()
    box.fill(typed)
    box.press("Enter")
    alert = page.get_by_role("alert").filter(has_text="accumulator").first
    expect(alert).to_be_visible()
    expect(box).to_have_value(before)
    assert "Traceback" not in alert.inner_text()


def test_back_to_a_wide_accumulator(page, run):
    box = page.get_by_label("Accumulator")
    box.fill("int32")
    box.press("Enter")
    expect(fact(page, "accumulator")).to_contain_text("bits to spare", timeout=PATIENCE)


def test_follow_a_number_from_disagreement_to_its_term(page, run):
    page.get_by_role("button", name="Where two semantics differ").click()
    about = page.get_by_text("onnxruntime gives code")
    expect(about).to_be_visible()
    row, channel = (
        int(page.get_by_role("spinbutton", name="input row").input_value()),
        int(page.get_by_role("spinbutton", name="channel").input_value()),
    )
    trace = run.follow(row, channel)
    assert run.codes_under("onnxruntime")[row, channel] != trace.code
    expect(page.get_by_text(f"= code {trace.code} under tflm")).to_be_visible()
    terms = page.get_by_role("grid").filter(has_text="the terms of the sum")
    assert terms.locator("tbody tr").count() == len(trace.terms)
    line = terms.locator("tbody tr").nth(17)
    line.click()
    formulas = page.locator("table.qwb-steps").first
    expect(formulas).to_contain_text(str(trace.term(17)[-1].formula))
    last = page.locator("table.qwb-steps").last
    for step in trace.steps:
        expect(last).to_contain_text(step.formula)
    page.lab.screenshot("follow-panel", ".qwb-tabs")


def test_typing_a_channel_follows_it_and_one_that_is_not_there_is_bounded(page, run):
    field = page.get_by_role("spinbutton", name="channel")
    field.fill("11")
    field.press("Enter")
    row = int(page.get_by_role("spinbutton", name="input row").input_value())
    expect(page.get_by_text(f"= code {run.codes[row, 11]} under tflm")).to_be_visible()
    field.fill("99999")
    field.press("Enter")
    expect(field).to_have_value(str(run.codes.shape[1] - 1))


def test_clicking_a_point_picks_its_channel(page):
    plot = page.locator(".js-plotly-plot").filter(has_text="click one to follow it")
    points = plot.locator(".scatterlayer .trace").nth(2).locator("path.point")
    plot.scroll_into_view_if_needed()
    box = points.nth(60).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 2, y - 2)
    page.mouse.move(x, y)
    page.wait_for_timeout(300)
    page.mouse.click(x, y)
    field = page.get_by_role("spinbutton", name="channel")
    expect(field).to_have_value(re.compile("^(59|60|61)$"))  # a neighbour's marker may lie in front


@pytest.mark.parametrize("width", [1000, 1280, 1920])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 1000})
    wider = cut_off(page, ".qwb-panel")
    page.lab.screenshot(f"integer-{width}", ".qwb-tabs")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert wider == []


def test_dark_theme_and_no_errors(page):
    page.lab.theme("JupyterLab Dark")
    page.wait_for_timeout(700)
    page.lab.screenshot("integer-dark", ".qwb-tabs")
    page.lab.theme("JupyterLab Light")
    assert page.lab.errors == []


def test_reload_brings_the_integers_back(page, run):
    page.lab.command("docmanager:save")
    page.lab.reload(".wb-live")
    LivePanel(page).wait()
    page.get_by_role("tab", name="Integer", exact=True).click()
    expect(fact(page, "from float")).to_contain_text(
        f"{run.errors['integer vs float'].sqnr_db:.2f} dB", timeout=PATIENCE
    )

"""The figures' widgets in JupyterLab: pick by mouse and keys, drag the landscape's marker, width, theme."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import expect

SETUP = """
import numpy as np
from workbench import open_model
from workbench.panels import ErrorPanel, OutliersPanel, Session, WeightsPanel
from workbench.panels.theme import follow_theme
from safetensors.numpy import save_file
import tempfile, pathlib
weights = 0.02 * np.random.default_rng(4).standard_t(4, (96, 128))
path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
save_file({"a.b.weight": weights.astype(np.float32)}, path)
session = Session(path)
watcher = follow_theme(session)
"""


@pytest.fixture
def notebook(lab, lab_page):
    def show(panel: str):
        lab.write_notebook("figures.ipynb", [SETUP, f"panel = {panel}Panel(session)\npanel"])
        lab_page.open_notebook("figures.ipynb")
        lab_page.hide_chrome()
        lab_page.run_all()
        return lab_page

    return show


def eventually(holds, seconds: float = 30.0) -> None:
    """Wait until a condition holds; the last try's failure is the test's."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.1)
    assert holds()


def state(page) -> list[str]:
    return page.python("session.wait(60); print(session.channel, session.grid, session.clip, session.theme)").split()


def test_outliers_pick_channels_by_plot_table_and_map(notebook) -> None:
    page = notebook("Outliers")
    plot = page.page.locator("[role=figure][aria-label^='Range of each'] .nsewdrag").first
    plot.wait_for()
    plot.scroll_into_view_if_needed()
    page.page.wait_for_timeout(300)
    plot.hover()
    plot.click()
    page.page.locator("[role=figure][aria-label*=' alone']").first.wait_for()
    eventually(lambda: 30 < int(state(page)[0]) < 66)  # the middle of 96

    rows = page.page.locator("[role=grid]").last.locator("tbody tr")
    rows.nth(1).click()  # JupyterLab may deliver widget messages and code by different ways: wait for both
    eventually(lambda: state(page)[0] == rows.nth(1).locator("td").first.inner_text())
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("Enter")
    eventually(lambda: state(page)[0] == rows.nth(2).locator("td").first.inner_text())

    before = int(state(page)[0])
    canvas = page.page.locator("canvas[role=slider]")
    canvas.focus()
    key, after = ("ArrowUp", before - 1) if before > 0 else ("ArrowDown", 1)
    page.page.keyboard.press(key)
    eventually(lambda: int(state(page)[0]) == after)
    expect(canvas).to_have_attribute("aria-valuetext", re.compile(f"output channel {after},"))
    assert page.errors == []


def test_landscape_marker_is_dragged_without_the_kernel_and_then_heard(notebook) -> None:
    page = notebook("Error")
    canvas = page.page.locator("canvas[aria-label^='Exponent and clip']")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    page.page.wait_for_timeout(500)
    box = canvas.bounding_box()
    x, y = box["x"] + 0.4 * box["width"], box["y"] + 80
    page.page.mouse.move(x, y)
    page.page.mouse.down()
    with page.sent_to_kernel() as sent:
        for step in range(12):
            page.page.mouse.move(x + 6 * step, y + 3 * step)
    assert "comm_msg" not in sent
    before = state(page)
    page.page.mouse.up()
    eventually(lambda: state(page)[1:3] != before[1:3])
    _, grid, clip, _ = state(page)
    assert grid.startswith("power:bits=4,exponent=")
    value = canvas.get_attribute("aria-valuetext")
    assert f"exponent {float(grid.rpartition('=')[2]):g}" in value
    assert f"clip {float(clip):g}" in value
    assert 0.5 < float(clip) < 1
    page.page.locator(".qwb-errors tbody tr").nth(2).wait_for()
    measured = page.python("print(f'{session.exact.mse:.4g}')").strip()
    page.page.wait_for_function(
        "(t) => document.querySelector('.qwb-errors').innerText.includes(t)", arg=f"= {measured}"
    )
    canvas.focus()
    page.page.keyboard.press("Home")

    def at_the_best() -> bool:
        best = page.python("session.wait(60); print(panel.map.best[0], session.grid.exponent)").split()
        return abs(float(best[0]) - float(best[1])) <= 0.0026  # the marker moves in steps of 0.005

    eventually(at_the_best)
    assert page.errors == []


def test_figures_follow_width_and_theme(notebook) -> None:
    page = notebook("Weights")
    figure = page.page.locator("[role=figure][aria-label^='Weights of'] .main-svg").first
    figure.wait_for()
    narrow = figure.bounding_box()["width"]
    page.page.set_viewport_size({"width": 1920, "height": 1000})
    eventually(lambda: figure.bounding_box()["width"] > narrow + 300)
    title = page.page.locator("[role=figure][aria-label^='Weights of'] .gtitle").first
    assert title.evaluate("e => getComputedStyle(e).fill") == "rgb(36, 41, 47)"
    page.theme("JupyterLab Dark")
    expect(title).to_have_css("fill", "rgb(230, 230, 230)")
    page.theme("JupyterLab Light")
    assert page.page.evaluate("() => typeof globalThis.Plotly") == "undefined"  # the page's own name stays free
    assert page.errors == []

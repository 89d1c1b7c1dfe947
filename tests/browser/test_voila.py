"""The same workbench as an app: Voilà shows it without code cells, and it answers."""

from __future__ import annotations

import pytest
from live_driver import LivePanel

import workbench
from workbench.resources import demo_path


def test_the_app_answers(voila, watched_page):
    page = watched_page.page
    page.goto(voila.url("00_workbench.ipynb"))
    live = LivePanel(page)
    live.wait()
    live.wait_exact()
    live.drag("bits", 5)
    live.drag("exponent", 0.7)
    live.wait_exact()
    with workbench.open_model(demo_path("tiny-gemma3")) as model:
        report = workbench.exact_error(
            model[live.text("name").strip()],
            workbench.PowerGrid(bits=int(live.value("bits")), exponent=live.value("exponent")),
            granularity=live.choice("granularity").input_value(),
            clip=live.value("clip"),
        )
    assert live.mse().value == pytest.approx(report.mse, rel=6e-4)
    assert page.locator(".jp-InputArea-editor:visible").count() == 0
    watched_page.screenshot("voila-1280")
    assert watched_page.errors == []

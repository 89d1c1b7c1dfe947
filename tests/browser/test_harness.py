"""The harness itself: a plain widget notebook runs, the kernel answers, sent messages and console errors are seen."""

from __future__ import annotations

import pytest

CELLS = [
    "import ipywidgets as widgets\nslider = widgets.IntSlider(value=3, max=10)\ntext = widgets.Label('3')\n"
    "slider.observe(lambda change: setattr(text, 'value', str(change['new'])), 'value')\nwidgets.VBox([slider, text])"
]


def test_a_widget_notebook_runs_and_its_messages_are_counted(lab, lab_page):
    lab.write_notebook("harness.ipynb", CELLS)
    lab_page.open_notebook("harness.ipynb")
    lab_page.run_all()
    handle = lab_page.page.locator(".noUi-handle")
    handle.wait_for()
    with lab_page.sent_to_kernel() as sent:
        handle.focus()
        handle.press("ArrowRight")
        lab_page.page.get_by_text("4", exact=True).first.wait_for()
    assert "comm_msg" in sent
    with lab_page.sent_to_kernel() as sent:
        lab_page.page.wait_for_timeout(300)
    assert sent == []
    assert lab_page.python("print(slider.value)") == "4\n"
    assert lab_page.errors == []


def test_a_failing_cell_is_reported_with_its_traceback(lab, lab_page):
    lab.write_notebook("failing.ipynb", ["1 / 0"])
    lab_page.open_notebook("failing.ipynb")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        lab_page.run_all()

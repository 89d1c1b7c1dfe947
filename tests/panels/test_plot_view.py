from __future__ import annotations

import base64
import json

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.panels import plot_view
from workbench.panels.plot_view import PlotView


@pytest.fixture
def view():
    widget = PlotView()
    yield widget
    widget.close()


def test_the_whole_figure_is_one_text_with_binary_arrays(view: PlotView) -> None:
    y = np.array([1.0, np.nan, 3.0], dtype=np.float32)
    view.show(go.Figure(go.Scatter(x=[0, 1, 2], y=y), layout={"uirevision": "keep"}))
    spec = json.loads(view.spec)
    assert spec["data"][0]["y"]["dtype"] == "f4"
    sent = np.frombuffer(base64.b64decode(spec["data"][0]["y"]["bdata"]), dtype=np.float32)
    np.testing.assert_array_equal(sent, y)
    assert spec["layout"]["uirevision"] == "keep"


def test_a_change_is_one_message_and_no_change_is_none(view: PlotView, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(view, "send_state", lambda key=None: sent.append(key))
    view.show(go.Figure(go.Scatter(y=[1, 2])))
    view.show(go.Figure(go.Scatter(y=[1, 2])))
    assert len(sent) == 1


def test_clicks_reach_the_handler_each_time(view: PlotView) -> None:
    got = []
    view.on_point(got.append)
    view.clicked = {"count": 1, "data": [5, "5"]}
    view.clicked = {"count": 2, "data": [5, "5"]}
    assert got == [[5, "5"], [5, "5"]]


def test_figures_share_one_library_and_are_small_themselves(view: PlotView) -> None:
    other = PlotView()
    library = plot_view._library
    assert library is not None
    assert view.library == other.library == library.key
    assert plot_view.share_library() == library.key
    assert plot_view._library is library
    assert "plotly.js v" in library.source[:400]
    assert len(json.dumps({k: v for k, v in other.get_state().items() if isinstance(v, str)})) < 8_000
    other.close()


def test_a_closed_library_is_replaced() -> None:
    first = plot_view._library
    if first is not None:
        first.close()
    plot_view.share_library()
    assert plot_view._library is not first


def test_panels_leave_no_widget_behind(session) -> None:
    from ipywidgets.widgets import widget

    from workbench.panels import ErrorPanel, OutliersPanel, WeightsPanel

    session.select("model.layers.0.mlp.up_proj")
    kept = []
    for _ in range(2):
        for kind in (WeightsPanel, OutliersPanel, ErrorPanel):
            panel = kind(session)
            assert panel.wait(120)
            panel.close()
        kept.append(len(widget._instances))
    assert kept[0] == kept[1]

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.figures.distribution import Bars, histogram_figure
from workbench.figures.update import update_in_place


def bars(scale: float, name: str = "layer") -> Bars:
    return Bars(name, np.linspace(-scale, scale, 33), np.arange(32, dtype=float) + scale)


def assert_same(shown: go.Figure, new: go.Figure) -> None:
    assert [t.type for t in shown.data] == [t.type for t in new.data]
    for a, b in zip(shown.data, new.data, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.y)


def test_takes_data_and_layout_and_keeps_the_trace_objects() -> None:
    shown = go.Figure(histogram_figure(bars(1.0), levels=np.array([-1.0, 0, 1])))
    traces = shown.data
    new = histogram_figure(bars(2.0), levels=np.array([-2.0, -1, 0, 1, 2]), log=True)
    update_in_place(shown, new)
    assert_same(shown, new)
    assert all(a is b for a, b in zip(traces, shown.data, strict=True))
    assert shown.layout.yaxis.type == "log"
    assert shown.layout.uirevision == "keep"


def test_adds_and_takes_away_traces() -> None:
    shown = go.Figure(histogram_figure(bars(1.0)))
    more = histogram_figure(bars(1.0), compared=[bars(2.0, "a"), bars(3.0, "b")])
    update_in_place(shown, more)
    assert_same(shown, more)
    less = histogram_figure(bars(1.5))
    update_in_place(shown, less)
    assert_same(shown, less)


def test_properties_that_the_new_figure_lacks_go_away() -> None:
    shown = go.Figure([go.Scatter(y=[1, 2], yaxis="y2", line={"dash": "dash", "width": 3}, name="old")])
    update_in_place(shown, go.Figure([go.Scatter(y=[1, 2], line={"width": 3})]))
    trace = shown.data[0].to_plotly_json()
    assert {"yaxis", "name"}.isdisjoint(name for name, value in trace.items() if value is not None)
    assert shown.data[0].line.dash is None
    assert shown.data[0].line.width == 3


def test_rebuilds_where_kinds_differ() -> None:
    shown = go.Figure([go.Scatter(y=[1, 2])])
    update_in_place(shown, histogram_figure(bars(1.0)))
    assert shown.data[0].type == "bar"
    assert len(shown.data) == len(histogram_figure(bars(1.0)).data)


def test_only_what_changed_is_sent_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = go.Figure(histogram_figure(bars(1.0), levels=np.array([-1.0, 0, 1])))
    sent = []
    original = shown.plotly_update

    def record(restyle_data, relayout_data, trace_indexes):
        sent.append((restyle_data, relayout_data, trace_indexes))
        original(restyle_data, relayout_data, trace_indexes)

    monkeypatch.setattr(shown, "plotly_update", record)
    update_in_place(shown, histogram_figure(bars(1.0), levels=np.array([-1.0, 0.5, 1])))
    ((restyle, relayout, indexes),) = sent
    assert set(restyle) == {"x"}  # the levels moved; counts, widths and colours did not
    assert indexes == [1]
    assert relayout == {}


def test_same_figure_again_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = go.Figure(histogram_figure(bars(1.0), levels=np.array([-1.0, 0, 1]), log=True))
    sent = []
    monkeypatch.setattr(shown, "plotly_update", lambda **message: sent.append(message))
    update_in_place(shown, histogram_figure(bars(1.0), levels=np.array([-1.0, 0, 1]), log=True))
    assert [m["restyle_data"] for m in sent] == [{}]
    assert [m["relayout_data"] for m in sent] == [{}]

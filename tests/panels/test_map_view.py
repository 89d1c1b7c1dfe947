from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.figures.palette import diverging
from workbench.panels import map_view
from workbench.panels.map_view import MapView, colour_bytes
from workbench.panels.table_view import TableView


@pytest.fixture
def view():
    widget = MapView(colours=colour_bytes(diverging("light"), diverging("dark")))
    yield widget
    widget.close()


def test_cells_arrive_as_float32_bytes(view: MapView) -> None:
    cells = np.arange(6, dtype=np.float64).reshape(2, 3)
    view.show(cells, x_edges=[0, 1, 2, 3], y_edges=[0.0, 10, 20], low=0, high=5, x_label="input channel")
    assert len(view.data) == 4 * 6
    np.testing.assert_array_equal(view.values, cells)
    assert (view.rows, view.columns, view.x_label) == (2, 3, "input channel")
    assert view.y_edges == [0.0, 10.0, 20.0]


def test_a_whole_picture_is_one_message(view: MapView, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(view, "send_state", lambda key=None: sent.append(set(key or ())))
    view.show(np.ones((2, 2)), x_edges=[0, 1, 2], y_edges=[0, 1, 3], low=0, high=9, marker=[1.0, 1.0])
    assert len(sent) == 1
    assert {"data", "rows", "columns", "marker"} <= sent[0]


@pytest.mark.parametrize("edges", [[0, 1], [0, 2, 1], [0, 1, 1]])
def test_borders_that_do_not_fit_are_refused(view: MapView, edges: list[float]) -> None:
    with pytest.raises(WorkbenchError, match="3 ascending borders"):
        view.show(np.ones((1, 2)), x_edges=edges, y_edges=[0, 1], low=0, high=1)


def test_clear_leaves_nothing(view: MapView) -> None:
    view.show(np.ones((1, 1)), x_edges=[0, 1], y_edges=[0, 1], low=0, high=1, best=[0.5, 0.5])
    view.clear()
    assert view.data == b""
    assert view.best == []


def test_two_colour_tables_of_256() -> None:
    table = colour_bytes(diverging("light"), diverging("dark"))
    assert len(table) == 2 * 256 * 3
    assert table[:3] == bytes(diverging("light")[0])


def test_modules_are_small_and_ask_no_network() -> None:
    for name in ("map_view.js", "table_view.js"):
        source = Path(map_view.__file__).with_name(name).read_text(encoding="utf-8")
        assert len(source.encode()) < 12_000
        assert "import " not in source
        assert "http" not in source


def test_table_keeps_its_lines() -> None:
    table = TableView(caption="Largest weights", pickable=True)
    table.show(["weight", "row"], [["0.5", "3"], ["-0.4", "9"]], picked=1)
    assert table.lines == ["weight\trow", "0.5\t3", "-0.4\t9"]
    assert table.picked == 1
    table.close()

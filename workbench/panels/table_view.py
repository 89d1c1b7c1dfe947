"""A small table of text whose rows a person picks by mouse or keyboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets


class TableView(anywidget.AnyWidget):
    """A table; with ``pickable`` a click, Enter or Space on a row sets ``picked``."""

    _esm = Path(__file__).with_name("table_view.js")

    caption = traitlets.Unicode("").tag(sync=True)
    columns = traitlets.List(traitlets.Unicode(), default_value=[]).tag(sync=True)
    rows = traitlets.List(traitlets.List(traitlets.Unicode()), default_value=[]).tag(sync=True)
    picked = traitlets.Int(-1).tag(sync=True)
    """Index of the picked row, or -1."""
    pickable = traitlets.Bool(False).tag(sync=True)
    max_height = traitlets.Int(300).tag(sync=True)
    """CSS pixels; longer tables scroll."""

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, picked: int = -1) -> None:
        """Replace the table in one message."""
        with self.hold_sync():
            self.columns = list(columns)
            self.rows = [list(row) for row in rows]
            self.picked = picked

    @property
    def lines(self) -> list[str]:
        """The table as lines of tab-separated text."""
        return ["\t".join(row) for row in (self.columns, *self.rows)]

"""A recipe as a table whose cells are typed into: one row per entry, the later ones overriding the earlier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets


class RecipeTable(anywidget.AnyWidget):
    """Rows of text fields. The page reports what a person does in ``asked``; Python answers by ``rows`` or ``refuse``.

    ``asked`` holds ``what`` (``edit``, ``add``, ``remove``, ``up``, ``down``), ``row``, ``column``, ``value``, ``count``.
    """

    _esm = Path(__file__).with_name("recipe_table.js")

    caption = traitlets.Unicode("").tag(sync=True)
    columns = traitlets.List(default_value=[]).tag(sync=True)
    """``[name, about, what an empty cell means, width in ch, what it means in the first row]`` of each column typed into."""
    suggestions = traitlets.Dict(default_value={}).tag(sync=True)
    """Column index (as text) -> values to choose from; others may be typed."""
    rows = traitlets.List(default_value=[]).tag(sync=True)
    """``[[text of each column], facts, tone]`` of each row; the facts are shown behind it and cannot be edited."""
    facts_name = traitlets.Unicode("").tag(sync=True)
    answered = traitlets.Int(0).tag(sync=True)
    """Counts the answers: the page shows the rows again also where an edit has left them as they were."""
    asked = traitlets.Dict(default_value={}).tag(sync=True)
    refused = traitlets.Dict(default_value={}).tag(sync=True)
    """The last refusal: ``row``, ``column``, ``sentence``, ``count``; the cell shows its old value and is marked."""

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self._on_ask: Callable[[Mapping[str, Any]], None] | None = None
        self.observe(self._pass_on, "asked")

    def show(self, rows: Sequence[Sequence[Any]]) -> None:
        """Bring the table to a new state; a refusal is forgotten."""
        with self.hold_sync():
            self.rows = [list(row) for row in rows]
            self.refused = {}
            self.answered += 1

    def refuse(self, row: int, column: int, sentence: str) -> None:
        """Put the old value back into a cell, and mark it with the reason."""
        self.refused = {
            "row": row,
            "column": column,
            "sentence": sentence,
            "count": int(self.asked.get("count", 0)),
        }

    def on_ask(self, handler: Callable[[Mapping[str, Any]], None]) -> None:
        """Call ``handler(asked)`` when a person has edited a cell or pressed a row's button."""
        self._on_ask = handler

    def ask(self, what: str, row: int = -1, column: int = -1, value: str = "") -> None:
        """Do what the page does when a person edits a cell or presses a button (scripts and tests)."""
        count = int(self.asked.get("count", 0)) + 1
        self.asked = {"what": what, "row": row, "column": column, "value": value, "count": count}

    def _pass_on(self, _change: Any) -> None:
        if self._on_ask is not None and self.asked:
            self._on_ask(self.asked)

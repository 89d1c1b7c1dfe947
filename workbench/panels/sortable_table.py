"""A table of results: sorted by any column, rows picked by mouse or keyboard, the best marked by a sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import traitlets


@dataclass(frozen=True)
class Column:
    """A column's heading."""

    name: str
    """With the unit, e.g. ``output SQNR / dB``."""
    words: bool = False
    """Whether it holds words, read from the left; numbers line up at the right."""
    about: str = ""
    """What the number is: shown when the mouse rests on the heading."""


@dataclass(frozen=True)
class Cell:
    """One entry: what is shown, what it is sorted by, and whether it is the best of its column."""

    text: str
    key: float | None = None
    """None sorts behind all numbers (a column of words is sorted by its text)."""
    best: bool = False
    tone: str = ""
    """``warn`` or ``dim``; empty for plain text."""

    def plain(self) -> list[Any]:
        """Return what goes to the page."""
        key = self.key if self.key is not None and math.isfinite(self.key) else None
        if self.key is not None and math.isinf(self.key):
            key = math.copysign(1e300, self.key)
        return [self.text, key, self.best, self.tone]


@dataclass(frozen=True)
class Line:
    """One row."""

    cells: tuple[Cell, ...]
    note: str = field(default="")
    """One sentence below the row, over its whole width: why it failed, what to know."""


class SortableTable(anywidget.AnyWidget):
    """A table; a click on a heading sorts by it, and with ``pickable`` a click, Enter or Space on a row picks it."""

    _esm = Path(__file__).with_name("sortable_table.js")

    caption = traitlets.Unicode("").tag(sync=True)
    empty = traitlets.Unicode("").tag(sync=True)
    """What stands in the table's place while it has no rows."""
    columns = traitlets.List(default_value=[]).tag(sync=True)
    """``[name, words, about]`` of each column."""
    rows = traitlets.List(default_value=[]).tag(sync=True)
    """``[cells, note]`` of each row; a cell is ``[text, key, best, tone]``."""
    sort = traitlets.List(default_value=[-1, False]).tag(sync=True)
    """Column that the page sorts by, or -1 for the rows' own order, and whether the largest comes first."""
    picked = traitlets.Int(-1).tag(sync=True)
    """Index of the picked row in the rows' own order, or -1."""
    pickable = traitlets.Bool(False).tag(sync=True)
    max_height = traitlets.Int(300).tag(sync=True)
    """CSS pixels; longer tables scroll."""

    def show(self, columns: Sequence[Column], lines: Sequence[Line], *, picked: int | None = None) -> None:
        """Replace the table in one message; without ``picked`` the picked row stays where it is."""
        with self.hold_sync():
            self.columns = [[column.name, column.words, column.about] for column in columns]
            self.rows = [[[cell.plain() for cell in line.cells], line.note] for line in lines]
            if picked is not None:
                self.picked = picked
            elif self.picked >= len(self.rows):
                self.picked = -1

    @property
    def lines(self) -> list[str]:
        """The table as lines of tab-separated text, for a picture."""
        head = "\t".join(name for name, _words, _about in self.columns)
        body = ["\t".join(("★ " if best else "") + text for text, _key, best, _tone in cells) for cells, _ in self.rows]
        return [head, *body]

"""A matrix of numbers on a canvas: axes, hover read-out, a marker to drag.

Plotly sends a heatmap as JSON (256 x 256 cells: 1.2 MB for each update); here the cells go as float32 bytes, and
the browser paints them. Used for the weight map and for the exponent x clip landscape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from jaxtyping import Float, UInt8

from workbench.errors import WorkbenchError


class MapView(anywidget.AnyWidget):
    """A matrix of numbers as a picture with axes.

    The person hovers to read a cell; with ``pickable`` the marker follows a drag or the arrow keys (Shift: eight cells,
    Home: the best cell), and ``marker`` changes when the mouse rests.
    """

    _esm = Path(__file__).with_name("map_view.js")

    data = traitlets.Bytes(b"").tag(sync=True)
    """float32 cells, row by row; NaN cells stay empty."""
    rows = traitlets.Int(0).tag(sync=True)
    columns = traitlets.Int(0).tag(sync=True)
    low = traitlets.Float(0.0).tag(sync=True)
    """Value at the lower end of the colour table."""
    high = traitlets.Float(1.0).tag(sync=True)
    """Value at the upper end of the colour table."""
    colours = traitlets.Bytes(b"").tag(sync=True)
    """256 RGB triples for a light page, then 256 for a dark one."""
    x_edges = traitlets.List(traitlets.Float(), default_value=[0.0, 1.0]).tag(sync=True)
    """Borders of the columns on the x axis (columns + 1, ascending)."""
    y_edges = traitlets.List(traitlets.Float(), default_value=[0.0, 1.0]).tag(sync=True)
    """Borders of the rows on the y axis (rows + 1, ascending)."""
    up = traitlets.Bool(False).tag(sync=True)
    """Whether row 0 is at the bottom."""
    whole = traitlets.Bool(False).tag(sync=True)
    """Whether a cell stands for whole numbers (channels) and is read as a range."""
    x_label = traitlets.Unicode("").tag(sync=True)
    y_label = traitlets.Unicode("").tag(sync=True)
    value_label = traitlets.Unicode("").tag(sync=True)
    x_name = traitlets.Unicode("x").tag(sync=True)
    """The x axis in a read-out, e.g. ``exponent``."""
    y_name = traitlets.Unicode("y").tag(sync=True)
    value_name = traitlets.Unicode("").tag(sync=True)
    """The cell's value in a read-out, e.g. ``SQNR ≈``."""
    value_unit = traitlets.Unicode("").tag(sync=True)
    x_step = traitlets.Float(0.0).tag(sync=True)
    """The marker's x is rounded to this step (0: not at all)."""
    y_step = traitlets.Float(0.0).tag(sync=True)
    marker = traitlets.List(traitlets.Float(), default_value=[]).tag(sync=True)
    """``[x, y]`` in axis units, or empty."""
    marker_kind = traitlets.Enum(("point", "row", "column"), "point").tag(sync=True)
    """Whether the marker marks a point, or its whole row or column of cells."""
    best = traitlets.List(traitlets.Float(), default_value=[]).tag(sync=True)
    """``[x, y]`` of the best cell, drawn as a cross, or empty."""
    pickable = traitlets.Bool(False).tag(sync=True)
    hint = traitlets.Unicode("Move over the picture to read a value.").tag(sync=True)
    label = traitlets.Unicode("map").tag(sync=True)
    """What a screen reader says the picture is."""
    height = traitlets.Int(340).tag(sync=True)
    """Height in CSS pixels; the width follows the page."""

    def show(
        self,
        values: Float[np.ndarray, "rows columns"],
        *,
        x_edges: Sequence[float] | np.ndarray,
        y_edges: Sequence[float] | np.ndarray,
        low: float,
        high: float,
        **traits: Any,
    ) -> None:
        """Replace the picture in one message.

        Args:
            values: the cells; NaN cells stay empty.
            x_edges: columns + 1 ascending borders, in axis units.
            y_edges: rows + 1 ascending borders, in axis units.
            low: value at the lower end of the colour table.
            high: value at the upper end of the colour table.
            traits: any other traits of this widget.

        Raises:
            WorkbenchError: the borders do not fit the cells or do not ascend.
        """
        rows, columns = values.shape
        across, along = np.asarray(x_edges, dtype=np.float64), np.asarray(y_edges, dtype=np.float64)
        for edges, cells, axis in ((across, columns, "x"), (along, rows, "y")):
            if edges.shape != (cells + 1,) or not (np.diff(edges) > 0).all():
                message = f"{cells} cells along {axis} need {cells + 1} ascending borders, not {edges.size}"
                raise WorkbenchError(message)
        with self.hold_sync():
            self.rows, self.columns = rows, columns
            self.x_edges, self.y_edges = across.tolist(), along.tolist()
            self.low, self.high = float(low), float(high)
            self.data = np.ascontiguousarray(values, dtype=np.float32).tobytes()
            for name, value in traits.items():
                setattr(self, name, value)

    @property
    def values(self) -> Float[np.ndarray, "rows columns"]:
        """The cells as they are on screen, float32."""
        return np.frombuffer(self.data, dtype=np.float32).reshape(self.rows, self.columns)

    def clear(self) -> None:
        """Take the picture away, e.g. while the next one is computed."""
        with self.hold_sync():
            self.rows, self.columns, self.data, self.best = 0, 0, b"", []


def colour_bytes(light: UInt8[np.ndarray, "256 3"], dark: UInt8[np.ndarray, "256 3"]) -> bytes:
    """Return the ``colours`` trait of two colour tables, for a light and a dark page."""
    return np.ascontiguousarray(light, np.uint8).tobytes() + np.ascontiguousarray(dark, np.uint8).tobytes()

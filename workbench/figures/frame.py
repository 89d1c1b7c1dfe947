"""What every figure of the workbench shares: its axes' titles, its theme, and that a redraw keeps the zoom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

from workbench.figures.palette import Theme, template

if TYPE_CHECKING:
    import plotly.graph_objects as go


def framed(
    traces: list[Any],
    *,
    title: str,
    x: str,
    y: str,
    dress: str | Theme,
    height: int = 280,
    layout: dict[str, Any] | None = None,
) -> go.Figure:
    """Return a figure with labelled axes in a theme's dress.

    Args:
        traces: plotly traces.
        title: what the figure shows, in one line.
        x: the x axis' title, with its unit.
        y: the y axis' title, with its unit.
        dress: the theme.
        height: CSS pixels; the width follows the page.
        layout: further plotly layout properties.
    """
    import plotly.graph_objects as go

    figure = go.Figure(traces)
    figure.update_layout(
        template=template(dress),
        title={"text": title},
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}},
        height=height,
        autosize=True,
        uirevision="keep",  # the person's zoom outlives a redraw
        showlegend=any(trace.showlegend is not False and trace.name for trace in traces),
    )
    if layout:
        figure.update_layout(layout)
    return figure


def narrow(values: Any) -> Float32[np.ndarray, " n"]:
    """Return values as a contiguous 1-D float32 array, the form in which a FigureWidget sends them as bytes."""
    return np.ascontiguousarray(np.asarray(values).ravel(), dtype=np.float32)


def short(name: str, most: int = 40) -> str:
    """Return a layer's name, cut in front where it is long: the end tells layers apart."""
    return name if len(name) <= most else "…" + name[-(most - 1) :]


def sticks(at: Float[np.ndarray, " n"], low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of upright lines at ``at`` from ``low`` to ``high``, as one trace with gaps (float32)."""
    x = np.repeat(np.asarray(at, dtype=np.float64), 4)
    y = np.tile([low, (low + high) / 2, high, np.nan], len(at))
    return narrow(x), narrow(y)

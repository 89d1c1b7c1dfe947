"""Grids against one another: one bar for each, SQNR in dB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.figures.frame import framed, narrow
from workbench.figures.palette import Theme, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

Part = Literal["current", "uniform", "best", "other"]


@dataclass(frozen=True)
class Bar:
    """One grid's result, as the figure draws it."""

    name: str
    """The grid's short name."""
    sqnr_db: float
    mse: float
    bits: float
    """Bits per weight, scales counted."""
    badge: str
    """``≈`` or ``=``."""
    part: Part
    """What the grid is here: decides its colour."""
    label: str = ""
    """The grid's full name, for the hover text."""


def comparison_figure(bars: Sequence[Bar], *, dress: str | Theme = "light", height: int = 290) -> go.Figure:
    """Return one bar for each grid; higher is better.

    Args:
        bars: the grids in the order to draw.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    colours = {"current": look.levels, "uniform": look.uniform, "best": look.best, "other": look.quiet}
    heights = np.array([bar.sqnr_db if np.isfinite(bar.sqnr_db) else np.nan for bar in bars])
    traces: list[Any] = [
        go.Bar(
            orientation="h",
            y=[bar.name for bar in bars],
            x=narrow(heights),
            width=0.72,
            marker={"color": [colours[bar.part] for bar in bars], "line": {"width": 0}},
            text=[f"{bar.badge} {bar.sqnr_db:.2f}" for bar in bars],
            textposition="outside",
            textfont={"size": 11},
            constraintext="none",
            cliponaxis=False,
            customdata=[[bar.mse, bar.bits, bar.badge, bar.label or bar.name] for bar in bars],
            hovertemplate=(
                "%{customdata[3]}: SQNR %{customdata[2]} %{x:.3f} dB, MSE %{customdata[2]} %{customdata[0]:.4g}, "
                "%{customdata[1]:.4g} bits per weight<extra></extra>"
            ),
            name="SQNR",
            showlegend=False,
        )
    ]
    finite = heights[np.isfinite(heights)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return framed(
        traces,
        title="Signal to quantization noise (higher is better)",
        x="SQNR / dB",
        y="",
        dress=look,
        height=height,
        layout={
            "xaxis": {"range": [min(0.0, low * 1.1), max(1.0, high * 1.15)], "uirevision": "fit"},
            "yaxis": {"autorange": "reversed", "title": {"text": "grid"}, "ticks": "", "showgrid": False},
            "hovermode": "closest",
        },
    )

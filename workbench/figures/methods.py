"""Methods at work: loss curves while they learn, and a layer's weights before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.figures.distribution import Bars
from workbench.figures.frame import framed, narrow
from workbench.figures.palette import OKABE_ITO, Theme, faded, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Colour alone does not tell curves apart: each next one has another dash too.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Curve:
    """A method's loss, step by step, as a figure draws it."""

    name: str
    steps: Sequence[int]
    loss: Sequence[float]
    """The method's own loss; the first is the start's."""

    @property
    def relative(self) -> Float[np.ndarray, " points"]:
        """The loss over its first value: curves of different losses share an axis. NaN where the first is not positive."""
        loss = np.asarray(self.loss, dtype=np.float64)
        if not loss.size or not loss[0] > 0.0:
            return np.full(loss.shape, np.nan)
        return loss / loss[0]


def curves_figure(
    curves: Sequence[Curve], *, steps: int = 0, title: str = "", dress: str | Theme = "light", height: int = 300
) -> go.Figure:
    """Return the loss of methods while they learn, each relative to its own start; lower is better.

    Args:
        curves: in the order in which they get colours and dashes.
        steps: how far the x axis reaches at least, so that a growing curve does not move it.
        title: the figure's title.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    colours = (look.weights, look.levels, *_others(look))
    traces: list[Any] = []
    low, high = 1.0, 1.0
    for number, curve in enumerate(curves):
        relative = curve.relative
        shown = np.where(relative > 0.0, relative, np.nan)
        if np.isfinite(shown).any():
            low, high = min(low, float(np.nanmin(shown))), max(high, float(np.nanmax(shown)))
        traces.append(
            go.Scatter(
                x=narrow(curve.steps),
                y=narrow(shown),
                mode="lines",
                line={"color": colours[number % len(colours)], "width": 2, "dash": DASHES[number % len(DASHES)]},
                name=curve.name,
                hovertemplate="step %{x}: %{y:.4f} of its start<extra>" + curve.name + "</extra>",
                showlegend=True,
            )
        )
    longest = max([steps, 1, *(int(curve.steps[-1]) for curve in curves if len(curve.steps))])
    return framed(
        traces,
        title=title or "Loss while learning (lower is better)",
        x="step",
        y="loss / loss at the start",
        dress=look,
        height=height,
        layout={
            "xaxis": {"range": [0, longest], "uirevision": str(longest)},
            "yaxis": {
                "type": "log",
                "range": [float(np.log10(low)) - 0.06, float(np.log10(high)) + 0.06],
                "tickvals": (marks := _marks(low, high)),
                "ticktext": [f"{mark:g}" for mark in marks],
            },
            "hovermode": "closest",
            "legend": {"y": 1.0, "yanchor": "bottom"},
        },
    )


def before_after_figure(
    before: Bars, after: Bars, *, title: str = "", dress: str | Theme = "light", height: int = 300
) -> go.Figure:
    """Return the histogram of a layer's true weights with that of its quantized weights over it, in the same bins.

    Args:
        before: the true weights.
        after: the quantized weights.
        title: the figure's title.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    middles = (np.asarray(before.edges[1:]) + np.asarray(before.edges[:-1])) / 2
    shares = [100.0 * np.asarray(bars.counts) / max(float(np.sum(bars.counts)), 1.0) for bars in (before, after)]
    traces: list[Any] = [
        go.Bar(
            x=narrow(middles),
            y=narrow(np.where(shares[0] > 0, shares[0], np.nan)),
            width=narrow(np.diff(before.edges)),
            marker={"color": faded(look.weights, 0.6), "line": {"width": 0}},
            name="before: true weights",
            hovertemplate="%{x:.4g}: %{y:.3g} % of the true weights<extra></extra>",
            showlegend=bool(len(middles)),
        ),
        go.Scatter(
            x=narrow(middles),
            y=narrow(np.where(shares[1] > 0, shares[1], np.nan)),
            mode="lines+markers" if len(middles) < 40 else "lines",
            line={"color": look.levels, "width": 1.5, "shape": "hvh"},
            name=f"after: {after.name}",
            hovertemplate="%{x:.4g}: %{y:.3g} % of the quantized weights<extra></extra>",
            showlegend=bool(len(middles)),
        ),
    ]
    seen = np.concatenate([share[share > 0] for share in shares]) if len(middles) else np.ones(1)
    least, most = (float(seen.min()), float(seen.max())) if seen.size else (1.0, 1.0)
    return framed(
        traces,
        title=title or "Weights before and after",
        x="weight value",
        y="share of weights per bin / % (log)",
        dress=look,
        height=height,
        layout={
            "yaxis": {
                "type": "log",
                "range": [float(np.log10(least * 0.6)), float(np.log10(most * 1.8))],
                "dtick": 1,
                "uirevision": "before-after",
            },
            "hovermode": "closest",
        },
    )


def levels_figure(
    levels: Float[np.ndarray, " levels"],
    after: Float[np.ndarray, " levels"],
    nearest_levels: Float[np.ndarray, " others"],
    nearest: Float[np.ndarray, " others"],
    *,
    name: str = "",
    title: str = "",
    dress: str | Theme = "light",
    height: int = 300,
) -> go.Figure:
    """Return how many weights stand on each level: after a method, and when each takes the nearest level.

    Args:
        levels: the method's levels on the axis where the full scale is 1.
        after: share of the weights on each level, 0 to 1.
        nearest_levels: the levels of rounding to nearest (the same, unless the method learned its own).
        nearest: share of the weights on each of them.
        name: the method's.
        title: the figure's title.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    stems_x = np.repeat(np.asarray(levels, dtype=np.float64), 3)
    stems_y = np.stack([np.zeros(len(levels)), 100.0 * np.asarray(after), np.full(len(levels), np.nan)], axis=1)
    traces: list[Any] = [
        go.Scatter(
            x=narrow(stems_x),
            y=narrow(stems_y),
            mode="lines",
            line={"color": look.levels, "width": 2},
            showlegend=False,
            hoverinfo="skip",
        ),
        go.Scatter(
            x=narrow(levels),
            y=narrow(100.0 * np.asarray(after)),
            mode="markers",
            marker={"color": look.levels, "size": 7},
            name=name or "after",
            hovertemplate="level %{x:.4f}: %{y:.3f} % of the weights<extra></extra>",
            showlegend=bool(len(levels)),
        ),
        go.Scatter(
            x=narrow(nearest_levels),
            y=narrow(100.0 * np.asarray(nearest)),
            mode="markers",
            marker={"color": look.weights, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
            name="round to nearest",
            hovertemplate="level %{x:.4f}: %{y:.3f} % of the weights<extra>round to nearest</extra>",
            showlegend=bool(len(nearest_levels)),
        ),
    ]
    return framed(
        traces,
        title=title or "Weights on each level",
        x="level / full scale",
        y="share of weights / %",
        dress=look,
        height=height,
        layout={"yaxis": {"rangemode": "tozero"}, "hovermode": "closest"},
    )


def _marks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten from ``low`` to ``high``; powers alone where that would be many."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1.0, 2.0, 5.0) if len(powers) <= 4 else (1.0,)
    return [step * 10.0**power for power in powers for step in steps]


def _others(look: Theme) -> tuple[str, ...]:
    """Return further colours that stay apart on this page."""
    return (*look.compared, look.ink if look.name == "light" else OKABE_ITO["vermillion"])

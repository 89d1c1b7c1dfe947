"""How weights are distributed: histogram with a grid's levels, code occupancy, quantiles against a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.figures.frame import framed, narrow, short, sticks
from workbench.figures.palette import Theme, faded, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Bars:
    """Counted weights of one layer or channel, as a figure draws them."""

    name: str
    edges: Float[np.ndarray, " bins+1"]
    """Borders of the bins, ascending."""
    counts: Float[np.ndarray, " bins"]
    """Weights in each bin."""


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of one layer's weights beside those of a Gaussian, as a figure draws them."""

    name: str
    gaussian: Float[np.ndarray, " points"]
    """Quantiles of the standard normal distribution."""
    weights: Float[np.ndarray, " points"]
    """Quantiles of the weights at the same probabilities."""
    mean: float = 0.0
    std: float = 1.0
    """Mean and standard deviation of the weights: the figure shows (w - mean) / std."""

    @property
    def standardised(self) -> Float[np.ndarray, " points"]:
        """The weights' quantiles in standard deviations from their mean; zeros where all weights are equal."""
        centred = np.asarray(self.weights, dtype=np.float64) - self.mean
        return centred / self.std if self.std > 0.0 else np.zeros_like(centred)


def histogram_figure(
    bars: Bars,
    *,
    levels: Float[np.ndarray, " levels"] | None = None,
    codes: Int[np.ndarray, " levels"] | None = None,
    compared: Sequence[Bars] = (),
    log: bool = False,
    x_title: str = "weight value",
    title: str = "",
    dress: str | Theme = "light",
    height: int = 300,
) -> go.Figure:
    """Return the histogram of weights with the grid's levels on it.

    Args:
        bars: the layer (or channel) at hand.
        levels: the grid's levels in the units of the x axis; None draws none.
        codes: the code of each level, for the hover text.
        compared: other layers, drawn as outlines. With any, the y axis is the share of each layer's weights, so that
            layers of different sizes can be compared.
        log: whether counts are on a log axis.
        x_title: the x axis' title with its unit.
        title: the figure's title.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    share = bool(compared)
    traces: list[Any] = [
        go.Bar(
            x=narrow(_middles(bars.edges)),
            y=narrow(_heights(bars, share=share)),
            width=narrow(np.diff(bars.edges)),
            name=short(bars.name),
            marker={"color": faded(look.weights, 0.75), "line": {"width": 0}},
            hovertemplate="%{x:.4g}: %{y:.3~s}" + (" %" if share else " weights") + "<extra></extra>",
            showlegend=share,
        )
    ]
    # The levels stay the second trace whatever else is drawn, so that a redraw changes traces instead of swapping them.
    traces.append(_level_sticks(np.empty(0) if levels is None else levels, codes, look))
    for i, other in enumerate(compared):
        traces.append(
            go.Scatter(
                x=narrow(_middles(other.edges)),
                y=narrow(_heights(other, share=True)),
                mode="lines",
                line={"color": look.compared[i % len(look.compared)], "width": 2, "shape": "hvh"},
                name=short(other.name),
                hovertemplate="%{x:.4g}: %{y:.3~s} %<extra>" + short(other.name) + "</extra>",
                showlegend=True,
            )
        )
    limits: list[float] | None = None
    if log:
        tallest = max(float(np.max(_heights(b, share=share), initial=0.0)) for b in (bars, *compared))
        smallest = min(_least(b, share=share) for b in (bars, *compared))
        limits = [float(np.log10(smallest * 0.5)), float(np.log10(max(tallest, smallest) * 1.6))]
    return framed(
        traces,
        title=title,
        x=x_title,
        y="share of weights per bin / %" if share else "weights per bin",
        dress=look,
        height=height,
        layout={
            "yaxis": {
                "type": "log" if log else "linear",
                "range": limits,
                "autorange": not log,
                "uirevision": f"log={log} share={share}",
                "dtick": 1 if log else None,
            },
            # The levels stand on an axis of their own, from floor to ceiling whatever the counts are.
            "yaxis2": {
                "overlaying": "y",
                "range": [0, 1],
                "visible": False,
                "fixedrange": True,
                "showgrid": False,
            },
            "hovermode": "closest",
        },
    )


def occupancy_figure(
    codes: Int[np.ndarray, " levels"],
    levels: Float[np.ndarray, " levels"],
    counts: Float[np.ndarray, " levels"],
    *,
    entropy: float,
    bits: float,
    compared: Sequence[tuple[str, Float[np.ndarray, " levels"]]] = (),
    badge: str = "≈",
    dress: str | Theme = "light",
    height: int = 280,
) -> go.Figure:
    """Return how many weights take each code.

    Args:
        codes: the stored integers, in the order of the levels.
        levels: the levels, ascending.
        counts: weights at each level.
        entropy: Shannon entropy of the codes, bits per weight.
        bits: what one code takes in storage.
        compared: (name, counts) of other layers on the same grid.
        badge: ``≈`` or ``=``.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    # Codes need not be in the order of their levels (float formats count negative zero up), so bars stand by rank.
    rank = np.arange(len(levels), dtype=np.float32)
    hover = np.stack([np.asarray(codes, dtype=np.float64), np.asarray(levels, dtype=np.float64)], axis=1).tolist()

    def share(of: Float[np.ndarray, " levels"]) -> np.ndarray:
        return narrow(100 * np.asarray(of, dtype=np.float64) / max(1.0, float(np.sum(of))))

    traces: list[Any] = [
        go.Bar(
            x=rank,
            y=share(counts),
            width=0.8 if len(levels) <= 64 else 1.0,
            customdata=hover,
            marker={"color": look.levels, "line": {"width": 0}},
            name="this layer",
            hovertemplate="code %{customdata[0]:d}, level %{customdata[1]:.4f}: %{y:.3f} %<extra></extra>",
            showlegend=bool(compared),
        )
    ]
    for i, (name, other) in enumerate(compared):
        traces.append(
            go.Scatter(
                x=rank,
                y=share(other),
                customdata=hover,
                mode="markers",
                marker={"color": look.compared[i % len(look.compared)], "size": 6, "symbol": "diamond"},
                name=short(name),
                hovertemplate="code %{customdata[0]:d}: %{y:.3f} %<extra>" + short(name) + "</extra>",
            )
        )
    shown = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), 16)).round().astype(int))
    return framed(
        traces,
        title=f"Codes in use: entropy {badge} {entropy:.3f} of {bits:g} bits per weight",
        x="stored code (in the order of the levels)",
        y="share of weights / %",
        dress=look,
        height=height,
        layout={
            "xaxis": {"tickvals": shown.tolist(), "ticktext": [str(int(np.asarray(codes)[i])) for i in shown]},
            "yaxis": {"rangemode": "tozero"},
            "hovermode": "closest",
        },
    )


def quantile_figure(layers: Sequence[Quantiles], *, dress: str | Theme = "light", height: int = 280) -> go.Figure:
    """Return the quantile-quantile plot of weights against a Gaussian; on the dashed line they are alike.

    Args:
        layers: the layer at hand first, then the compared ones.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    reach = max(float(np.max(np.abs(layer.gaussian), initial=1.0)) for layer in layers) if layers else 4.0
    traces: list[Any] = [
        go.Scatter(
            x=narrow([-reach, reach]),
            y=narrow([-reach, reach]),
            mode="lines",
            line={"color": look.quiet, "width": 1.5, "dash": "dash"},
            name="Gaussian",
            hoverinfo="skip",
            showlegend=True,
        )
    ]
    for i, layer in enumerate(layers):
        colour = look.weights if i == 0 else look.compared[(i - 1) % len(look.compared)]
        traces.append(
            go.Scatter(
                x=narrow(layer.gaussian),
                y=narrow(layer.standardised),
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"color": colour, "size": 4},
                name=short(layer.name, 28),
                hovertemplate="Gaussian %{x:.2f} σ, weights %{y:.2f} σ<extra>" + short(layer.name, 28) + "</extra>",
                showlegend=True,
            )
        )
    return framed(
        traces,
        title="Quantiles against a Gaussian",
        x="quantile of a Gaussian / σ",
        y="quantile of the weights / σ",
        dress=look,
        height=height,
        layout={"hovermode": "closest"},
    )


def _level_sticks(levels: np.ndarray, codes: np.ndarray | None, look: Theme) -> Any:
    import plotly.graph_objects as go

    x, y = sticks(np.asarray(levels), 0.0, 1.0)
    named = np.repeat(np.arange(len(levels)) if codes is None else np.asarray(codes)[: len(levels)], 4)
    many = len(levels) > 48
    return go.Scatter(
        x=x,
        y=y,
        yaxis="y2",
        mode="lines",
        line={"color": faded(look.levels, 0.55 if many else 0.9), "width": 0.7 if many else 1.4},
        customdata=named.tolist(),
        name=f"{len(levels)} levels",
        hovertemplate="code %{customdata}, level %{x:.5g}<extra></extra>",
        showlegend=len(levels) > 0,
    )


def _middles(edges: np.ndarray) -> np.ndarray:
    return (np.asarray(edges[1:]) + np.asarray(edges[:-1])) / 2


def _heights(bars: Bars, *, share: bool) -> np.ndarray:
    counts = np.asarray(bars.counts, dtype=np.float64)
    return 100 * counts / max(1.0, counts.sum()) if share else counts


def _least(bars: Bars, *, share: bool) -> float:
    """Return the height of a bin that holds a single weight: the floor of a log axis."""
    return 100 / max(1.0, float(np.sum(bars.counts))) if share else 1.0

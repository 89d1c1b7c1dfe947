"""Channels side by side: their ranges, their kurtosis, their error; a point is clicked to see a channel alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.figures.frame import framed, narrow
from workbench.figures.palette import Theme, faded, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: A figure is rarely wider than this many pixels, and a curve needs no more points than that.
MOST_POINTS = 1200


@dataclass(frozen=True)
class Buckets:
    """Runs of neighbouring channels that share one point of a curve, none of their extremes lost."""

    first: Int[np.ndarray, " points"]
    """The first channel of each run."""
    last: Int[np.ndarray, " points"]
    """The last channel of each run."""
    peak: Int[np.ndarray, " points"]
    """The channel of each run whose value is largest: what a click on the point means."""
    low: Float[np.ndarray, " points"]
    """The smallest value of each run."""
    high: Float[np.ndarray, " points"]
    """The largest value of each run."""

    @property
    def names(self) -> list[str]:
        """What a hover calls each point."""
        return [str(a) if a == b else f"{a}–{b}" for a, b in zip(self.first, self.last, strict=True)]


def buckets(values: Float[np.ndarray, " channels"], most: int = MOST_POINTS) -> Buckets:
    """Return at most ``most`` runs of channels with the smallest and the largest value of each."""
    data = np.asarray(values, dtype=np.float64)
    size = max(1, -(-len(data) // most))
    first = np.arange(0, len(data), size)
    last = np.minimum(first + size, len(data)) - 1
    if size == 1:
        return Buckets(first, last, first, data, data)
    peak = np.array([a + int(np.argmax(data[a : b + 1])) for a, b in zip(first, last, strict=True)])
    return Buckets(first, last, peak, np.minimum.reduceat(data, first), data[peak])


def range_figure(
    smallest: Float[np.ndarray, " channels"],
    largest: Float[np.ndarray, " channels"],
    *,
    axis: str = "output",
    picked: int = -1,
    dress: str | Theme = "light",
    height: int = 270,
) -> go.Figure:
    """Return the range of weights of every channel, smallest to largest.

    Each trace's ``customdata`` holds (channel, name): the channel that a click on a point picks.

    Args:
        smallest: smallest weight of each channel.
        largest: largest weight of each channel.
        axis: ``output`` (rows of the matrix) or ``input`` (columns).
        picked: the channel to mark, or -1.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    top, bottom = buckets(largest), buckets(-np.asarray(smallest, dtype=np.float64))
    reach = buckets(np.maximum(np.abs(smallest), np.abs(largest)))
    data = [[int(peak), name] for peak, name in zip(reach.peak, reach.names, strict=True)]
    middle = narrow((top.first + top.last) / 2)
    line = {"color": look.weights, "width": 1, "shape": "hvh"}
    upper = go.Scatter(
        x=middle,
        y=narrow(top.high),
        customdata=data,
        mode="lines",
        line=line,
        name="largest weight",
        hovertemplate=f"{axis} channel %{{customdata[1]}}: largest %{{y:.4g}}<extra></extra>",
        showlegend=False,
    )
    lower = go.Scatter(
        x=middle,
        y=narrow(-bottom.high),
        customdata=data,
        mode="lines",
        line=line,
        fill="tonexty",
        fillcolor=faded(look.weights, 0.35),
        name="smallest weight",
        hovertemplate="smallest %{y:.4g}<extra></extra>",
        showlegend=False,
    )
    traces: list[Any] = [upper, lower]
    inside = 0 <= picked < len(smallest)
    ends = [float(smallest[picked]), float(largest[picked])] if inside else []
    traces.append(_marked([float(picked)] * len(ends), ends, f"{axis} channel {picked}", look, mode="lines+markers"))
    return framed(
        traces,
        title=f"Range of each {axis} channel (click picks one)"
        if axis == "output"
        else f"Range of each {axis} channel",
        x=f"{axis} channel",
        y="weight value",
        dress=look,
        height=height,
        layout={"hovermode": "x", "xaxis": {"uirevision": axis}, "yaxis": {"uirevision": axis}},
    )


def kurtosis_figure(
    kurtosis: Float[np.ndarray, " channels"],
    *,
    axis: str = "output",
    picked: int = -1,
    dress: str | Theme = "light",
    height: int = 270,
) -> go.Figure:
    """Return the kurtosis of every channel; a Gaussian has 3, a Laplace distribution 6.

    Args:
        kurtosis: fourth central moment over squared variance, for each channel.
        axis: ``output`` or ``input``.
        picked: the channel to mark, or -1.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    runs = buckets(np.nan_to_num(np.asarray(kurtosis, dtype=np.float64)))
    middle = narrow((runs.first + runs.last) / 2)
    curve = go.Scatter(
        x=middle,
        y=narrow(runs.high),
        customdata=[[int(peak), name] for peak, name in zip(runs.peak, runs.names, strict=True)],
        mode="lines",
        line={"color": look.weights, "width": 1, "shape": "hvh"},
        name="kurtosis",
        hovertemplate=f"{axis} channel %{{customdata[1]}}: kurtosis %{{y:.3f}}<extra></extra>",
        showlegend=False,
    )
    gauss = go.Scatter(
        x=narrow([0, max(1, len(kurtosis) - 1)]),
        y=narrow([3, 3]),
        mode="lines",
        line={"color": look.quiet, "width": 1.5, "dash": "dash"},
        name="Gaussian: 3",
        hoverinfo="skip",
    )
    inside = 0 <= picked < len(kurtosis)
    point = _marked([picked] * inside, [float(kurtosis[picked])] * inside, f"{axis} channel {picked}", look)
    return framed(
        [curve, gauss, point],
        title=f"Kurtosis of each {axis} channel",
        x=f"{axis} channel",
        y="kurtosis (Gaussian: 3)",
        dress=look,
        height=height,
        layout={"hovermode": "x", "xaxis": {"uirevision": axis}, "yaxis": {"uirevision": axis}},
    )


def channel_error_figure(
    mse: Float[np.ndarray, " channels"],
    *,
    reference: Float[np.ndarray, " channels"] | None = None,
    names: tuple[str, str] = ("this grid", "uniform"),
    ordered: bool = False,
    picked: int = -1,
    badge: str = "=",
    dress: str | Theme = "light",
    height: int = 270,
) -> go.Figure:
    """Return the mean squared error of every output channel.

    Args:
        mse: mean squared error of each channel.
        reference: the same for another grid, drawn thin behind it, channel by channel.
        names: what the two are called.
        ordered: whether channels stand by falling error (of ``mse``) instead of by number.
        picked: the channel to mark, or -1.
        badge: ``≈`` or ``=``.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    data = np.asarray(mse, dtype=np.float64)
    order = np.argsort(-data, kind="stable") if ordered else np.arange(len(data))
    traces: list[Any] = []
    curves = [(data, names[0], look.levels, 1.5)]
    if reference is not None:
        curves.insert(0, (np.asarray(reference, dtype=np.float64), names[1], look.uniform, 1.0))
    for values, name, colour, width in curves:
        runs = buckets(values[order])
        channels = [[int(order[peak]), label if not ordered else str(int(order[peak]))]
                    for peak, label in zip(runs.peak, runs.names, strict=True)]  # fmt: skip
        traces.append(
            go.Scatter(
                x=narrow((runs.first + runs.last) / 2),
                y=narrow(runs.high),
                customdata=channels,
                mode="lines",
                line={"color": colour, "width": width, "shape": "hvh"},
                name=name,
                hovertemplate="channel %{customdata[1]}: %{y:.4g}<extra>" + name + "</extra>",
                showlegend=reference is not None,
            )
        )
    inside = 0 <= picked < len(data)
    at = float(np.flatnonzero(order == picked)[0]) if inside else 0.0
    traces.append(_marked([at] * inside, [float(data[picked])] * inside, f"channel {picked}", look))
    return framed(
        traces,
        title=f"Error of each output channel ({badge} {'measured' if badge == '=' else 'from the sketch'})",
        x="output channel, by falling error" if ordered else "output channel",
        y="mean squared error",
        dress=look,
        height=height,
        layout={
            "hovermode": "x",
            "xaxis": {"uirevision": f"ordered={ordered}"},
            "yaxis": {"rangemode": "tozero"},
        },
    )


def _marked(x: list[float], y: list[float], name: str, look: Theme, mode: str = "markers") -> Any:
    """Return the trace that marks the picked channel; it stays, empty, when none is picked."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=narrow(x),
        y=narrow(y),
        mode=mode,
        line={"color": look.picked, "width": 3},
        marker={"color": look.picked, "size": 9, "line": {"color": look.ink, "width": 1}},
        name=name,
        hoverinfo="skip",
        showlegend=bool(x),
    )

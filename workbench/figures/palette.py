"""Colours that colour-blind readers tell apart, and the light and dark dress of every figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import plotly.graph_objects as go

ThemeName = Literal["light", "dark"]

#: Okabe and Ito, "Color Universal Design" (2008): eight colours that stay apart for every common colour vision.
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "bluish green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish purple": "#CC79A7",
}

FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """What each thing on a figure is drawn with; colours are ``#rrggbb``."""

    name: ThemeName
    ink: str
    """Text and axis lines."""
    quiet: str
    """Reference curves and secondary text."""
    lines: str
    """Grid lines."""
    paper: str
    """Background of pictures; figures in the notebook are transparent and show the page through."""
    weights: str
    """The weights of the layer at hand."""
    levels: str
    """The grid's levels, and whatever the current grid gives."""
    uniform: str
    """The uniform grid of the same bits."""
    best: str
    """The best of all grids."""
    picked: str
    """The picked channel, the marker."""
    compared: tuple[str, ...]
    """Compared layers, in order."""


LIGHT = Theme(
    name="light",
    ink="#24292f",
    quiet="#6e7781",
    lines="#e4e7eb",
    paper="#ffffff",
    weights=OKABE_ITO["blue"],
    levels=OKABE_ITO["vermillion"],
    uniform=OKABE_ITO["bluish green"],
    best=OKABE_ITO["reddish purple"],
    picked=OKABE_ITO["orange"],
    compared=(OKABE_ITO["bluish green"], OKABE_ITO["reddish purple"], OKABE_ITO["orange"], OKABE_ITO["sky blue"]),
)

DARK = Theme(
    name="dark",
    ink="#e6e6e6",
    quiet="#a3a8ae",
    lines="#3a3f45",
    paper="#111111",
    weights=OKABE_ITO["sky blue"],
    levels=OKABE_ITO["orange"],
    uniform="#2fc49a",  # bluish green, lightened to 3:1 against the dark page
    best=OKABE_ITO["reddish purple"],
    picked=OKABE_ITO["yellow"],
    compared=("#2fc49a", OKABE_ITO["reddish purple"], OKABE_ITO["yellow"], "#4d9fd6"),
)


def theme(name: str | Theme = "light") -> Theme:
    """Return the theme called ``light`` or ``dark`` (a theme itself passes through).

    Raises:
        WorkbenchError: no theme has this name.
    """
    if isinstance(name, Theme):
        return name
    if name in {"light", "dark"}:
        return LIGHT if name == "light" else DARK
    message = f"theme {name!r} is not known; write light or dark"
    raise WorkbenchError(message)


def template(name: str | Theme = "light") -> go.layout.Template:
    """Return the plotly template of a theme: transparent, quiet grid lines, tight margins."""
    import plotly.graph_objects as go

    dress = theme(name)
    axis = {
        "gridcolor": dress.lines,
        "zerolinecolor": dress.lines,
        "linecolor": dress.quiet,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": dress.quiet,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12}},
        "exponentformat": "power",
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": dress.ink},
            "title": {"font": {"size": 13}, "x": 0.0, "xref": "paper", "xanchor": "left", "y": 0.98, "yanchor": "top"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [dress.weights, *dress.compared],
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 60, "r": 12, "t": 44, "b": 44},
            "bargap": 0,
            "hoverlabel": {
                "bgcolor": dress.paper,
                "bordercolor": dress.quiet,
                "font": {"color": dress.ink, "family": FONT, "size": 12},
                "namelength": -1,
            },
            "legend": {
                "orientation": "h",
                "x": 1.0,
                "xanchor": "right",
                "y": 1.0,
                "yanchor": "bottom",
                "bgcolor": "rgba(0,0,0,0)",
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": dress.quiet, "activecolor": dress.ink},
        }
    )


def faded(colour: str, alpha: float) -> str:
    """Return ``#rrggbb`` as ``rgba(...)`` with opacity ``alpha`` in [0, 1]."""
    red, green, blue = rgb(colour)
    return f"rgba({red},{green},{blue},{alpha:g})"


def rgb(colour: str) -> tuple[int, int, int]:
    """Return the three bytes of ``#rrggbb``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _ramp(colours: list[str]) -> UInt8[np.ndarray, "256 3"]:
    """Return 256 colours that pass through ``colours`` at equal distances."""
    stops = np.array([rgb(colour) for colour in colours], dtype=np.float64)
    where = np.linspace(0, len(stops) - 1, 256)
    channels = [np.interp(where, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def diverging(name: str | Theme = "light") -> UInt8[np.ndarray, "256 3"]:
    """Return the colour table of signed values: blue below zero, the page's colour at zero, vermillion above."""
    dress = theme(name)
    if dress.name == "light":
        return _ramp(["#003a5c", "#0072B2", "#7fb8d8", "#f7f7f7", "#eaae7f", "#D55E00", "#6e3000"])
    return _ramp(["#b8e0f7", "#56B4E9", "#1f5f85", "#16181b", "#8a4a14", "#E69F00", "#ffe3a3"])


def sequential() -> UInt8[np.ndarray, "256 3"]:
    """Return the colour table of magnitudes, dark to light.

    Cividis (Nunez, Anderton and Renslow, PLoS ONE 13(7), 2018), ten of its stops as plotly ships them: its
    lightness rises evenly, and it looks the same to readers with and without red-green colour blindness.
    """
    return _ramp(
        [
            "#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
            "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
        ]
    )  # fmt: skip

"""How a binary coding reaches its levels: a tree that splits once for each plane of signs, over the weights it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.figures.frame import framed, narrow
from workbench.figures.palette import Theme, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go


def splits(alphas: Float[np.ndarray, " bits"], bias: float) -> list[Float[np.ndarray, " nodes"]]:
    """Return the sums after 0, 1, ... planes, the largest alpha first: 1, 2, 4, ... numbers.

    Entry k of a row is the sum whose signs are the bits of k, so that the last row is in the order of the codes.

    >>> [row.tolist() for row in splits(np.array([1.0, 2.0]), 0.5)]
    [[0.5], [-1.5, 2.5], [-2.5, -0.5, 1.5, 3.5]]
    """
    rows = [np.array([float(bias)])]
    for alpha in np.asarray(alphas, dtype=np.float64)[::-1]:
        rows.append(np.stack([rows[-1] - alpha, rows[-1] + alpha], axis=1).ravel())
    return rows


def coding_figure(
    weights: Float[np.ndarray, " weights"],
    alphas: Float[np.ndarray, " bits"],
    bias: float = 0.0,
    *,
    title: str = "One group of weights and its binary coding",
    dress: str | Theme = "light",
    height: int = 320,
) -> go.Figure:
    """Return the tree of sums of one group over a rug of its weights.

    Args:
        weights: the group's weights, in any order.
        alphas: its alphas, ascending.
        bias: its bias, where the tree starts.
        title: what the figure shows, in one line.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    rows = splits(alphas, bias)
    bits = len(rows) - 1
    edges_x: list[float] = []
    edges_y: list[float] = []
    for depth in range(bits):
        for node, value in enumerate(rows[depth]):
            for child in (2 * node, 2 * node + 1):
                edges_x += [value, rows[depth + 1][child], np.nan]
                edges_y += [bits - depth, bits - depth - 1, np.nan]
    nodes_x = np.concatenate(rows)
    nodes_y = np.concatenate([np.full(len(row), bits - depth) for depth, row in enumerate(rows)])
    words = ["bias" if depth == 0 else f"signs {_signs(node, depth)}" for depth, row in enumerate(rows)
             for node in range(len(row))]  # fmt: skip
    levels = np.sort(rows[-1])
    borders = (levels[1:] + levels[:-1]) / 2.0
    values = np.asarray(weights, dtype=np.float64).ravel()
    nearest = levels[np.searchsorted(borders, values, side="right")]
    traces: list[Any] = [
        go.Scatter(
            x=narrow(edges_x),
            y=narrow(edges_y),
            mode="lines",
            line={"color": look.quiet, "width": 1},
            hoverinfo="skip",
            showlegend=False,
        ),
        go.Scatter(
            x=narrow(nodes_x),
            y=narrow(nodes_y),
            mode="markers",
            marker={"color": look.levels, "size": 7},
            customdata=words,
            hovertemplate="%{customdata}: %{x:.5g}<extra></extra>",
            name="sums of signed alphas",
        ),
        go.Scatter(
            x=narrow(values),
            y=narrow(np.full(len(values), -0.7)),
            mode="markers",
            marker={
                "color": look.weights,
                "size": 10,
                "symbol": "line-ns-open",
                "line": {"width": 1, "color": look.weights},
            },
            customdata=nearest,
            hovertemplate="weight %{x:.5g}, nearest sum %{customdata:.5g}<extra></extra>",
            name=f"{len(values)} weights",
        ),
    ]
    names = ["weights", *[f"± α{_small(plane)}" for plane in range(bits)], "bias"]
    return framed(
        traces,
        title=title,
        x="weight",
        y="",
        dress=look,
        height=height,
        layout={
            "hovermode": "closest",
            "yaxis": {
                "tickvals": [-0.7, *range(bits + 1)],
                "ticktext": names,
                "range": [-1.2, bits + 0.5],
                "showgrid": False,
                "zeroline": False,
                "title": {"text": "plane"},
            },
        },
    )


def _signs(node: int, depth: int) -> str:
    """Return the signs that lead to a node, the largest alpha's first."""
    return "".join("+" if node >> (depth - 1 - k) & 1 else "−" for k in range(depth))


def _small(number: int) -> str:
    """Return a number as subscript digits."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))

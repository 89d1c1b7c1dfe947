"""Integer inference: a layer's outputs three ways, how far two semantics lie apart, how wide the sums are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.figures.frame import framed, narrow
from workbench.figures.palette import Theme, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Differences further out than this share one bar at each end.
MOST_STEPS = 8


def outputs_figure(
    real: Float[np.ndarray, " channels"],
    fake: Float[np.ndarray, " channels"],
    integer: Float[np.ndarray, " channels"],
    *,
    step: float,
    row: int = 0,
    picked: int = -1,
    dress: str | Theme = "light",
    height: int = 300,
) -> go.Figure:
    """Return one row of a layer's outputs: in float, with fake quantization, and from integers.

    Each point's ``customdata`` begins with its channel: what a click picks.

    Args:
        real: the outputs in float.
        fake: the outputs of float arithmetic on quantized operands, quantized again.
        integer: what the integer codes stand for.
        step: real size of one output step.
        row: which row of the inputs, for the title.
        picked: the channel to mark, or -1.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    channel = np.arange(len(real))
    off, off_fake = (np.asarray(values, dtype=np.float64) - real for values in (integer, fake))
    unit = step if step > 0 else 1.0
    data = np.stack([channel, off / unit, off_fake / unit, fake], axis=1) if len(real) else np.zeros((0, 4))
    traces: list[Any] = [
        go.Scatter(
            x=narrow(channel),
            y=narrow(real),
            mode="lines",
            line={"color": look.quiet, "width": 1},
            name="float",
            hoverinfo="skip",
        ),
        go.Scatter(
            x=narrow(channel),
            y=narrow(fake),
            mode="markers",
            marker={"color": look.weights, "size": 6, "symbol": "circle-open"},
            name="fake-quant",
            hoverinfo="skip",
        ),
        go.Scatter(
            x=narrow(channel),
            y=narrow(integer),
            customdata=data.tolist(),
            mode="markers",
            marker={"color": look.levels, "size": 4},
            name="integer",
            hovertemplate=(
                "channel %{customdata[0]}: integer %{y:.4g} (%{customdata[1]:+.2f} steps from float), "
                "fake-quant %{customdata[3]:.4g} (%{customdata[2]:+.2f} steps)<extra></extra>"
            ),
        ),
    ]
    inside = 0 <= picked < len(real)
    traces.append(
        go.Scatter(
            x=narrow([picked] if inside else []),
            y=narrow([integer[picked]] if inside else []),
            mode="markers",
            marker={"color": look.picked, "size": 13, "symbol": "circle-open", "line": {"width": 3}},
            name=f"channel {picked}",
            showlegend=False,
            hoverinfo="skip",
        )
    )
    return framed(
        traces,
        title=f"Outputs of input row {row} (click one to follow it)",
        x="output channel",
        y="output value",
        dress=look,
        height=height,
        layout={"hovermode": "closest", "xaxis": {"uirevision": str(len(real))}},
    )


def off_by_figure(
    differences: Mapping[int, int],
    *,
    names: tuple[str, str],
    dress: str | Theme = "light",
    height: int = 300,
) -> go.Figure:
    """Return how many outputs differ by how many steps between two semantics; the counts stand on a log axis.

    Args:
        differences: first minus second in output steps -> how many outputs.
        names: the two semantics.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    total = sum(differences.values())
    gathered: dict[int, int] = {0: 0}
    for step, count in differences.items():
        end = int(np.clip(step, -MOST_STEPS, MOST_STEPS))
        gathered[end] = gathered.get(end, 0) + int(count)
    reach = max(2, *(abs(step) for step in gathered))
    steps = list(range(-reach, reach + 1))
    counts = [gathered.get(step, 0) for step in steps]
    same = gathered[0]
    labels = [_step_name(step, reach) for step in steps]
    shares = [f"{count:,}" if count else "" for count in counts]
    agreeing = "no outputs" if not total else f"{total - same:,} of {total:,} outputs differ"
    bars = go.Bar(
        x=steps,
        y=narrow([count if count else np.nan for count in counts]),
        text=shares,
        textposition="outside",
        cliponaxis=False,
        marker={"color": [look.quiet if step == 0 else look.levels for step in steps], "line": {"width": 0}},
        customdata=[
            [label, 100 * count / total if total else 0.0] for label, count in zip(labels, counts, strict=True)
        ],
        hovertemplate="%{customdata[0]} steps: %{text} outputs, %{customdata[1]:.4f} %<extra></extra>",
        showlegend=False,
    )
    top = max(total, 1) * 8.0
    return framed(
        [bars],
        title=f"{names[0]} against {names[1]}: {agreeing}",
        x="difference / output steps",
        y="outputs",
        dress=look,
        height=height,
        layout={
            "xaxis": {"tickvals": steps, "ticktext": labels, "showgrid": False},
            "yaxis": {"type": "log", "range": [-0.3, float(np.log10(top))], "dtick": 1},
            "hovermode": "closest",
        },
    )


def _step_name(step: int, reach: int) -> str:
    if abs(step) == reach == MOST_STEPS:
        return f"≤ {step}" if step < 0 else f"≥ {step}"
    return f"{step:+d}" if step else "0"


def accumulator_figure(
    sums_by_bits: Int[np.ndarray, " widths"],
    *,
    worst_case: int,
    width: int,
    dress: str | Theme = "light",
    height: int = 300,
) -> go.Figure:
    """Return how many accumulated sums need how many bits, beside the worst case and the accumulator's width.

    Args:
        sums_by_bits: at index b, the number of sums that need exactly b bits in two's complement.
        worst_case: bits that no allowed input can exceed.
        width: bits of the accumulator.
        dress: the theme.
        height: CSS pixels.
    """
    import plotly.graph_objects as go

    look = theme(dress)
    counts = np.asarray(sums_by_bits, dtype=np.float64)
    bits = np.arange(len(counts))
    seen = np.flatnonzero(counts)
    first = int(seen[0]) if seen.size else 1
    last = max(int(seen[-1]) if seen.size else 1, worst_case, width)
    top = float(counts.max(initial=1.0))
    bars = go.Bar(
        x=bits,
        y=narrow(np.where(counts > 0, counts, np.nan)),
        marker={"color": [look.levels if b > width else look.weights for b in bits], "line": {"width": 0}},
        hovertemplate="%{x} bits: %{y:,.0f} sums<extra></extra>",
        name="sums",
        showlegend=False,
    )
    traces: list[Any] = [bars]
    for name, at, colour, dash in (
        (f"accumulator: {width} bits", width, look.best, "solid"),
        (f"worst case: {worst_case} bits", worst_case, look.quiet, "dash"),
    ):
        traces.append(
            go.Scatter(
                x=narrow([at + 0.5, at + 0.5]),
                y=narrow([0.6, top * 3]),
                mode="lines",
                line={"color": colour, "width": 2, "dash": dash},
                name=name,
                hoverinfo="skip",
            )
        )
    return framed(
        traces,
        title="Bits that the sums need",
        x="bits, two's complement",
        y="sums",
        dress=look,
        height=height,
        layout={
            "xaxis": {"range": [first - 1.0, last + 1.5], "showgrid": False},
            "yaxis": {"type": "log", "range": [-0.3, float(np.log10(top * 4))], "dtick": 1},
            "hovermode": "closest",
        },
    )

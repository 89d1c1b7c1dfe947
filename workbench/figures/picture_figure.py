"""Draw a plotly figure of bars, lines and markers with pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.palette import Theme, theme
from workbench.figures.picture import Axis, font, number, plain, rgba, sideways

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from PIL import Image


def draw_figure(figure: go.Figure, width: int = 640, height: int = 300, dress: str | Theme = "light") -> Image.Image:
    """Draw a plotly figure of bars, lines and markers.

    Args:
        figure: any figure of this package; other trace types are left out.
        width: pixels.
        height: pixels.
        dress: the theme, for paper and ink.
    """
    from PIL import Image, ImageDraw

    if figure.data and getattr(figure.data[0], "orientation", None) == "h":
        return draw_named_bars(figure, width, height, dress)
    look = theme(dress)
    layout: Any = figure.layout
    drawn: Any = figure.data
    image = Image.new("RGB", (width, height), look.paper)
    draw = ImageDraw.Draw(image, "RGBA")
    traces = [trace for trace in drawn if trace.visible in {None, True} and trace.type in {"bar", "scatter"}]
    left, right, top, bottom = 62, width - 12, 44, height - 46
    xs = [_numbers(trace.x, len(_list(trace.y))) for trace in traces]
    ys = [_numbers(trace.y, len(_list(trace.x))) for trace in traces]
    widths = [_half_width(trace, x) for trace, x in zip(traces, xs, strict=True)]
    spread = [np.concatenate([x - h, x + h]) for x, h in zip(xs, widths, strict=True) if x.size]
    bars = any(trace.type == "bar" for trace in traces)
    x_axis = Axis(layout.xaxis, spread, (left, right))
    first = [y for trace, y in zip(traces, ys, strict=True) if trace.yaxis != "y2"]
    y_axis = Axis(layout.yaxis, first, (bottom, top), zero=bars)
    overlaid = getattr(layout, "yaxis2", None)
    second = Axis(overlaid, [], (bottom, top)) if overlaid is not None else y_axis
    _axes(draw, x_axis, y_axis, look)
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer, "RGBA")
    before: tuple[np.ndarray, np.ndarray] | None = None
    for trace, x, y, half in zip(traces, xs, ys, widths, strict=True):
        plot_area = _Plot(pen, x_axis, second if trace.yaxis == "y2" else y_axis)
        if trace.type == "bar":
            plot_area.bars(x, y, half, _colours(trace.marker.color, len(x), look.weights))
            continue
        if trace.fill == "tonexty" and before is not None:
            plot_area.band(*before, x, y, rgba(trace.fillcolor))
        before = (x, y)
        mode = trace.mode or "lines"
        if "lines" in mode:
            ink, shape = rgba(trace.line.color or look.weights), trace.line.shape or "linear"
            plot_area.line(x, y, ink, wide=trace.line.width or 2, shape=shape)
        if "markers" in mode:
            plot_area.dots(x, y, _colours(trace.marker.color, len(x), look.weights), trace.marker.size)
    plot = (left, top, right + 1, bottom + 1)
    image.paste(layer.crop(plot), plot[:2], layer.crop(plot))
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=look.quiet)
    draw.text((left, 6), plain(layout.title.text or ""), font=font(13), fill=look.ink)
    if layout.showlegend is not False:
        _legend(draw, [t for t in traces if t.showlegend is not False and t.name], right, look)
    return image


def draw_named_bars(figure: go.Figure, width: int, height: int, dress: str | Theme = "light") -> Image.Image:
    """Draw a figure of one trace of horizontal bars, the first at the top, each with its name and its text.

    Arguments as in ``draw_figure``.
    """
    from PIL import Image, ImageDraw

    look = theme(dress)
    layout: Any = figure.layout
    trace: Any = figure.data[0]
    image = Image.new("RGB", (width, height), look.paper)
    draw = ImageDraw.Draw(image)
    names, values = [plain(name) for name in _list(trace.y)], _numbers(trace.x, 0)
    left = 40 + max([int(font(12).getlength(name)) for name in names], default=60)
    right, top, bottom = width - 12, 32, height - 46
    axis = Axis(layout.xaxis, [values], (left, right), zero=True)
    for tick in axis.at:
        x = float(axis.place(tick))
        draw.line([(x, top), (x, bottom)], fill=look.lines)
        draw.text((x, bottom + 6), number(tick), font=font(11), fill=look.ink, anchor="ma")
    step = (bottom - top) / max(1, len(names))
    colours, texts = _colours(trace.marker.color, len(names), look.weights), _list(trace.text)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        middle = top + (i + 0.5) * step
        draw.text((left - 8, middle), name, font=font(12), fill=look.ink, anchor="rm")
        if np.isfinite(value):
            ends = sorted((float(axis.place(0.0)), float(axis.place(value))))
            draw.rectangle([ends[0], middle - 0.36 * step, ends[1], middle + 0.36 * step], fill=colours[i])
            draw.text((ends[1] + 4, middle), plain(texts[i]), font=font(11), fill=look.ink, anchor="lm")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=look.quiet)
    draw.text(((left + right) / 2, bottom + 26), axis.title, font=font(12), fill=look.ink, anchor="ma")
    draw.text((left, 6), plain(layout.title.text or ""), font=font(13), fill=look.ink)
    return image


def _axes(draw: Any, x_axis: Axis, y_axis: Axis, look: Theme) -> None:
    (left, right), (bottom, top) = x_axis.pixels, y_axis.pixels
    for i, tick in enumerate(y_axis.at):
        y = float(y_axis.place(tick))
        if top - 1 <= y <= bottom + 1:
            draw.line([(left, y), (right, y)], fill=look.lines)
            text = y_axis.labels[i] if y_axis.labels else number(tick)
            draw.text((left - 6, y), text, font=font(11), fill=look.ink, anchor="rm")
    for i, tick in enumerate(x_axis.at):
        x = float(x_axis.place(tick))
        if left - 1 <= x <= right + 1:
            draw.line([(x, bottom), (x, bottom + 4)], fill=look.quiet)
            text = x_axis.labels[i] if x_axis.labels else number(tick)
            draw.text((x, bottom + 6), text, font=font(11), fill=look.ink, anchor="ma")
    draw.text(((left + right) / 2, bottom + 26), x_axis.title, font=font(12), fill=look.ink, anchor="ma")
    sideways(draw._image, y_axis.title, (12, (top + bottom) // 2), look)


class _Plot:
    """The area between the axes: data in, ink out."""

    def __init__(self, pen: Any, x_axis: Axis, y_axis: Axis) -> None:
        self.pen, self.x_axis, self.y_axis = pen, x_axis, y_axis

    def bars(self, x: np.ndarray, y: np.ndarray, half: np.ndarray, colours: list[Any]) -> None:
        """Draw upright bars of half width ``half`` from zero (from the lower end of a log axis)."""
        first, last = self.x_axis.place(x - half), self.x_axis.place(x + half)
        base, tops = (
            float(self.y_axis.place(max(0.0, self.y_axis.low) if self.y_axis.log else 0.0)),
            self.y_axis.place(y),
        )
        for a, b, top, colour, value in zip(first, last, tops, colours, y, strict=True):
            if np.isfinite(value) and value != 0:
                self.pen.rectangle([a, min(top, base), max(a, b - 0.01), max(top, base)], fill=colour)

    def line(self, x: np.ndarray, y: np.ndarray, ink: Any, *, wide: float, shape: str) -> None:
        """Draw a line, broken where a coordinate is not finite."""
        if shape == "hvh" and len(x) > 1:  # steps that change midway between points, as plotly draws them
            middle = (x[1:] + x[:-1]) / 2
            x, y = np.concatenate([[x[0]], np.repeat(middle, 2), [x[-1]]]), np.repeat(y, 2)
        across, along = self.x_axis.place(x), self.y_axis.place(y)
        good = np.isfinite(across) & np.isfinite(along)
        for run in np.split(np.arange(len(across)), np.flatnonzero(~good)):
            points = [(float(across[i]), float(along[i])) for i in run if good[i]]
            if len(points) > 1:
                self.pen.line(points, fill=ink, width=max(1, round(wide)))

    def band(self, x: np.ndarray, y: np.ndarray, under_x: np.ndarray, under_y: np.ndarray, ink: Any) -> None:
        """Fill between two curves."""
        outline = [*zip(self.x_axis.place(x), self.y_axis.place(y), strict=True)]
        outline += [*zip(self.x_axis.place(under_x), self.y_axis.place(under_y), strict=True)][::-1]
        if len(outline) > 2 and np.isfinite(outline).all():
            self.pen.polygon([(float(a), float(b)) for a, b in outline], fill=ink)

    def dots(self, x: np.ndarray, y: np.ndarray, colours: list[Any], size: Any) -> None:
        """Draw round markers ``size`` pixels wide."""
        radius = float(size if isinstance(size, (int, float)) else 6) / 2
        for a, b, colour in zip(self.x_axis.place(x), self.y_axis.place(y), colours, strict=True):
            if np.isfinite(a) and np.isfinite(b):
                self.pen.ellipse([a - radius, b - radius, a + radius, b + radius], fill=colour)


def _legend(draw: Any, traces: list[Any], right: int, look: Theme) -> None:
    x = float(right)
    for trace in reversed(traces):
        text = plain(trace.name)
        colour = (
            trace.marker.color if trace.type == "bar" or "lines" not in (trace.mode or "lines") else trace.line.color
        )
        x -= font(11).getlength(text)
        draw.text((x, 26), text, font=font(11), fill=look.ink)
        swatch = _colours(colour, 1, look.weights)[0]
        draw.rectangle([x - 14, 28, x - 5, 36], fill=swatch)
        x -= 26


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _words(values: Any) -> list[str] | None:
    cells = _list(values)
    return [str(c) for c in cells] if cells and isinstance(cells[0], str) else None


def _numbers(values: Any, count: int) -> np.ndarray:
    """Return coordinates as float64; words and missing coordinates count 0, 1, 2, ..."""
    if values is None or _words(values) is not None:
        return np.arange(len(_list(values)) or count, dtype=np.float64)
    return np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)


def _half_width(trace: Any, x: np.ndarray) -> np.ndarray:
    if trace.type != "bar" or not x.size:
        return np.zeros_like(x)
    if trace.width is not None:
        return np.broadcast_to(np.asarray(trace.width, dtype=np.float64) / 2, x.shape)
    gaps = np.diff(np.unique(x[np.isfinite(x)]))
    return np.full_like(x, 0.4 * (gaps.min() if gaps.size else 1.0))


def _colours(colour: Any, count: int, default: str) -> list[tuple[int, int, int, int]]:
    if colour is None or isinstance(colour, str):
        return [rgba(colour or default)] * count
    return [rgba(str(c)) for c in colour]

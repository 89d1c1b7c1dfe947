"""Draw a matrix of numbers with axes and a colour bar with pillow, as the canvas map shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from workbench.figures.palette import Theme, rgb, theme
from workbench.figures.picture import font, number, plain, sideways, ticks

if TYPE_CHECKING:
    from PIL import Image


def draw_map(
    values: Float[np.ndarray, "rows columns"],
    table: UInt8[np.ndarray, "256 3"],
    low: float,
    high: float,
    *,
    x_edges: np.ndarray,
    y_edges: np.ndarray,
    labels: tuple[str, str, str],
    marks: list[tuple[float, float, str]] | None = None,
    up: bool = False,
    width: int = 640,
    height: int = 340,
    dress: str | Theme = "light",
) -> Image.Image:
    """Draw a matrix of numbers with axes and a colour bar, as the canvas map shows it.

    Args:
        values: the cells; NaN cells show the paper.
        table: 256 colours from ``low`` to ``high``.
        low: value at the first colour.
        high: value at the last colour.
        x_edges: columns + 1 borders in axis units.
        y_edges: rows + 1 borders in axis units.
        labels: the x axis', the y axis' and the colour bar's text.
        marks: points as (x, y, colour), drawn as rings.
        up: whether row 0 is at the bottom.
        width: pixels.
        height: pixels.
        dress: the theme, for paper and ink.
    """
    from PIL import Image, ImageDraw

    look = theme(dress)
    image = Image.new("RGB", (width, height), look.paper)
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = 62, width - 86, 12, height - 46
    safe = np.nan_to_num((np.asarray(values, np.float64) - low) / ((high - low) or 1.0) * 255)
    pixels = np.asarray(table)[np.clip(safe.round(), 0, 255).astype(np.int64)].astype(np.uint8)
    pixels[~np.isfinite(values)] = rgb(look.paper)
    cells = Image.fromarray(pixels[::-1].copy() if up else pixels)
    image.paste(cells.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    draw.rectangle([left - 1, top - 1, right, bottom], outline=look.quiet)

    def place(edges: np.ndarray, value: float, start: int, stop: int) -> float:
        return start + float(np.interp(value, edges, np.linspace(0, 1, len(edges)))) * (stop - start)

    y_span = (bottom, top) if up else (top, bottom)
    for tick in ticks(float(x_edges[0]), float(x_edges[-1]), (right - left) // 80):
        x = place(x_edges, tick, left, right)
        draw.line([(x, bottom), (x, bottom + 4)], fill=look.quiet)
        draw.text((x, bottom + 6), number(tick), font=font(11), fill=look.ink, anchor="ma")
    for tick in ticks(float(y_edges[0]), float(y_edges[-1]), (bottom - top) // 40):
        y = place(y_edges, tick, *y_span)
        draw.line([(left - 5, y), (left - 1, y)], fill=look.quiet)
        draw.text((left - 7, y), number(tick), font=font(11), fill=look.ink, anchor="rm")
    for i in range(bottom - top):
        colour = tuple(int(v) for v in table[255 - i * 255 // max(1, bottom - top - 1)])
        draw.line([(right + 10, top + i), (right + 20, top + i)], fill=colour)
    for tick in ticks(low, high, 4):
        y = bottom - (tick - low) / ((high - low) or 1.0) * (bottom - top)
        draw.text((right + 24, y), number(tick), font=font(11), fill=look.ink, anchor="lm")
    draw.text(((left + right) / 2, height - 22), plain(labels[0]), font=font(12), fill=look.ink, anchor="ma")
    sideways(image, plain(labels[1]), (12, (top + bottom) // 2), look)
    sideways(image, plain(labels[2]), (width - 12, (top + bottom) // 2), look)
    for x, y, colour in marks or []:
        at_x, at_y = place(x_edges, x, left, right), place(y_edges, y, *y_span)
        for radius, stroke, ink in ((8, 4, "#000000"), (7, 2, colour)):
            draw.ellipse([at_x - radius, at_y - radius, at_x + radius, at_y + radius], outline=ink, width=stroke)
    return image

"""The table of layers as a picture: what a saved notebook shows without a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

#: Rows that a picture shows; more would not be read.
PICTURE_ROWS = 36
#: dB at which a bar is full, as in the widget.
FULL_BAR = 40.0
_ROW = 20
_NAME, _SHAPE, _SIGMA, _BAR, _NUMBER = 12, 500, 570, 590, 755
_WIDTH = 770


#: Upper end in dB and colour of each band of bars: a step for each bit or so; Okabe and Ito's colours and a lighter orange.
BANDS = ((8.0, "#d55e00"), (14.0, "#e69f00"), (20.0, "#f0c24b"), (28.0, "#56b4e9"), (float("inf"), "#0072b2"))


def colour_of(sqnr_db: float) -> str:
    """Return the bar's colour, from poor to fine."""
    return next((colour for limit, colour in BANDS if sqnr_db < limit), BANDS[-1][1])


def draw_layers(title: str, layers: Mapping[str, Mapping[str, Any]], dress: str = "light") -> Image.Image:
    """Draw layers, one to a row, in the order given.

    Args:
        title: heading above the table.
        layers: name -> ``shape`` (list of int), ``max_over_sigma`` and ``sqnr_db`` (float, or None where not measured).
        dress: ``light`` or ``dark``.
    """
    from PIL import Image, ImageDraw

    from workbench.figures.palette import theme
    from workbench.figures.picture import font, plain

    look = theme(dress)
    shown = list(layers.items())[:PICTURE_ROWS]
    left_out = len(layers) - len(shown)
    sheet = Image.new("RGB", (_WIDTH, 34 + _ROW * (len(shown) + 1 + (left_out > 0)) + 8), look.paper)
    draw = ImageDraw.Draw(sheet)
    draw.text((_NAME, 8), plain(title), fill=look.ink, font=font(14))

    def write(at: tuple[int, int], text: str, anchor: str = "la", fill: str = look.ink) -> None:
        draw.text(at, plain(text), fill=fill, font=font(12), anchor=anchor)

    top = 34
    for place, text, anchor in (
        (_NAME, "layer", "la"),
        (_SHAPE, "shape", "ra"),
        (_SIGMA, "max/σ", "ra"),
        (_NUMBER, "SQNR ≈ / dB", "ra"),
    ):
        write((place, top), text, anchor, look.quiet)
    for name, row in shown:
        top += _ROW
        draw.line([(_NAME, top - 3), (_WIDTH - _NAME, top - 3)], fill=look.lines)
        write((_NAME, top), name if len(name) <= 58 else "…" + name[-57:])
        write((_SHAPE, top), " x ".join(map(str, row["shape"])), "ra", look.quiet)
        if row["max_over_sigma"] is not None:
            write((_SIGMA, top), f"{row['max_over_sigma']:.1f}", "ra")
        if row["sqnr_db"] is not None:
            width = min(1.0, max(0.02, row["sqnr_db"] / FULL_BAR)) * 110
            draw.rectangle([_BAR, top + 2, _BAR + width, top + 12], fill=colour_of(row["sqnr_db"]))
            write((_NUMBER, top), f"{row['sqnr_db']:.1f}", "ra")
    if left_out > 0:
        write((_NAME, top + _ROW), f"and {left_out} more", fill=look.quiet)
    return sheet

"""Draw a figure as a PNG without a browser: what a saved notebook, GitHub and a dead kernel show.

It reads the same plotly figure that the notebook shows (bars, lines, markers, linear and log axes), so the picture
carries the same numbers. kaleido would start a browser for each image; pillow takes some milliseconds.
"""

from __future__ import annotations

import io
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.palette import Theme, rgb, theme

if TYPE_CHECKING:
    from PIL import Image, ImageFont

#: The font that pillow carries knows ASCII only; these are the other signs the figures use.
_ASCII = {
    "≈": "~", "×": "x", "−": "-", "–": "-", "·": ".", "σ": "sigma", "²": "^2", "³": "^3", "≤": "<=", "→": "->",
    "…": "...", "µ": "u", "“": '"', "”": '"', "’": "'",
}  # fmt: skip


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return the font that pillow carries, ``size`` pixels high."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """Return a figure's text without markup, in the signs that pillow's own font has."""
    bare = re.sub(r"<[^>]+>", " ", str(text))
    return "".join(_ASCII.get(sign, sign) for sign in bare).encode("ascii", "replace").decode()


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten) from ``low`` to ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Return a tick's text: at most four digits, powers of ten where zeros would fill the axis."""
    if value == 0:
        return "0"
    size = abs(value)
    if 1e4 <= size < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}" if 1e-3 <= size < 1e4 else re.sub(r"e([+-])0*", r"e\1", f"{value:.3g}").replace("e+", "e")


class Axis:
    """One axis of a picture: data to pixels, linear or logarithmic, with its ticks."""

    def __init__(self, spec: Any, values: list[np.ndarray], pixels: tuple[int, int], *, zero: bool = False) -> None:
        self.log = spec.type == "log"
        self.title = plain(spec.title.text or "")
        self.pixels = pixels
        self.labels: list[str] | None = None
        zero = zero or spec.rangemode == "tozero"
        finite = np.concatenate([v[np.isfinite(v)] for v in values] or [np.zeros(1)])
        finite = finite[finite > 0] if self.log else finite
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 10.0)
        if zero and not self.log:
            low, high = min(low, 0.0), max(high, 0.0)
        if spec.range is not None and None not in spec.range:
            low, high = (10.0 ** float(r) if self.log else float(r) for r in spec.range)
        elif not zero:
            pad = 0.0 if self.log else 0.03 * (high - low)
            low, high = low - pad, high + pad
        elif self.log:
            high *= 1.6
        else:
            high += 0.05 * (high - low)
        if low == high:
            low, high = (low / 2, high * 2) if self.log else (low - 0.5, high + 0.5)
        self.low, self.high = low, high
        if spec.tickvals is not None:
            self.at = [float(v) for v in spec.tickvals]
            self.labels = [plain(t) for t in spec.ticktext or map(number, self.at)]
        elif self.log:
            first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
            step = max(1, (last - first) // 6)
            self.at = [10.0**k for k in range(first, last + 1, step)] or [low, high]
        else:
            self.at = ticks(low, high, abs(pixels[1] - pixels[0]) // (80 if pixels[1] > pixels[0] else 40))

    def place(self, values: np.ndarray | float) -> Any:
        """Return pixel positions; values at or below zero on a log axis go to the axis' lower end."""
        data = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            data = np.log10(np.maximum(data, low))
            low, high = math.log10(low), math.log10(high)
        start, stop = self.pixels
        return start + (data - low) / (high - low) * (stop - start)


def draw_text(lines: list[str], width: int = 640, dress: str | Theme = "light", size: int = 13) -> Image.Image:
    """Draw lines of text (a table's rows, a panel's numbers), one below the other."""
    from PIL import Image, ImageDraw

    look = theme(dress)
    step = size + 6
    image = Image.new("RGB", (width, step * len(lines) + 10), look.paper)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        for column, cell in enumerate(plain(line).split("\t")):
            draw.text((12 + column * 112, 5 + i * step), cell, font=font(size), fill=look.ink)
    return image


def stack(images: list[Image.Image], *, beside: bool = False, dress: str | Theme = "light") -> Image.Image:
    """Put pictures below one another (or beside one another), on the theme's paper."""
    from PIL import Image

    widths, heights = [i.width for i in images], [i.height for i in images]
    size = (sum(widths), max(heights)) if beside else (max(widths), sum(heights))
    whole = Image.new("RGB", size, theme(dress).paper)
    at = 0
    for image in images:
        whole.paste(image, (at, 0) if beside else (0, at))
        at += image.width if beside else image.height
    return whole


def png(image: Image.Image) -> bytes:
    """Return an image as PNG bytes."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def rgba(colour: str) -> tuple[int, int, int, int]:
    """Return ``#rrggbb`` or ``rgba(r,g,b,a)`` as four bytes."""
    if colour.startswith("rgb"):
        parts = [float(p) for p in re.findall(r"[\d.]+", colour)]
        return int(parts[0]), int(parts[1]), int(parts[2]), round(255 * (parts[3] if len(parts) > 3 else 1.0))
    return (*rgb(colour), 255)


def sideways(image: Image.Image, text: str, at: tuple[int, int], look: Theme) -> None:
    """Write text upwards, its middle at ``at`` (pixels)."""
    from PIL import Image, ImageDraw

    letters = font(12)
    wide, high = int(letters.getlength(text)) + 4, 18
    strip = Image.new("RGB", (wide, high), look.paper)
    ImageDraw.Draw(strip).text((2, 1), text, font=letters, fill=look.ink)
    image.paste(strip.rotate(90, expand=True), (at[0] - high // 2, max(0, at[1] - wide // 2)))

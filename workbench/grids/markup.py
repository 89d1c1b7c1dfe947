"""How a grid shows itself in a notebook: its text form and its levels as ticks on a line."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.grids.grid import Grid

WIDTH = 480
TICKS = 512
"""More levels than this cannot be told apart on the line; every k-th is drawn, and the caption still counts all."""


def grid_html(grid: Grid) -> str:
    """Return a small SVG of the grid's levels with its label, text form, bits and number of levels."""
    levels = grid.levels[:: max(1, len(grid) // TICKS)]
    low = min(0.0, float(grid.levels[0]))
    span = max(1.0, float(grid.levels[-1])) - low
    place = [8 + (WIDTH - 16) * (float(level) - low) / span for level in levels]
    marks = "".join(f"M{x:.1f} 4V{20 if level else 26}" for x, level in zip(place, levels, strict=True))
    text = str(grid)
    text = text if len(text) <= 80 else text[:77] + "..."
    caption = f"{grid.bits}-bit codes, {len(grid)} levels from {grid.levels[0]:.4g} to {grid.levels[-1]:.4g}"
    return (
        f"<div><b>{escape(grid.label)}</b> <code>{escape(text)}</code><br>"
        f'<svg width="{WIDTH}" height="30" role="img" aria-label="{escape(caption)}">'
        f'<path d="M8 12H{WIDTH - 8}{marks}" stroke="currentColor" fill="none"/></svg><br>'
        f"<small>{escape(caption)}</small></div>"
    )

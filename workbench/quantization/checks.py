"""What a public call is given, checked before any work: the grid, the clip."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import QuantizationError
from workbench.grids.grid import Grid


def as_grid(grid: Any) -> Grid:
    """Return a grid itself, or the one that its text form names.

    Raises:
        QuantizationError: neither a grid nor a text.
        GridError: the text names no grid.

    >>> as_grid("uniform:bits=3")
    UniformGrid(bits=3, range='narrow')
    """
    if isinstance(grid, str):
        from workbench.grids import parse_grid

        return parse_grid(grid)
    if not isinstance(grid, Grid):
        message = f"a grid is a Grid or its text form such as 'uniform:bits=4', not a {type(grid).__name__}"
        raise QuantizationError(message)
    return grid


def check_clip(clip: Any) -> None:
    """Refuse a clip that is no number above 0 and at most 1.

    Raises:
        QuantizationError: see above.
    """
    if not (isinstance(clip, float | int | np.floating) and 0.0 < clip <= 1.0):
        message = f"a clip is the fraction of absmax that the scale keeps, above 0 and at most 1, not {clip}"
        raise QuantizationError(message)

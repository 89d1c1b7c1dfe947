"""The weight map, made ready for the canvas: cells, borders, and where its colours end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from workbench.quantization.maps import WeightMap
    from workbench.quantization.statistics import ChannelStatistics


@dataclass(frozen=True)
class WeightPicture:
    """Cells of a weight map with the borders of its axes."""

    values: Float[np.ndarray, "lines cells"]
    """The weight of largest magnitude in each cell, with its sign."""
    row_edges: Float[np.ndarray, " lines+1"]
    """First output channel of each line, and the number of output channels."""
    column_edges: Float[np.ndarray, " cells+1"]
    """First input channel of each cell of a line, and the number of input channels."""
    reach: float
    """Colours run from -reach to +reach; larger weights have the colours of the ends."""


def weight_picture(found: WeightMap, share: float = 0.995) -> WeightPicture:
    """Lay a weight map out for drawing.

    Args:
        found: the map.
        share: of the cells, whose colours still differ: one weight far out must not leave all others pale.
    """
    lines, cells = found.values.shape
    rows = [found.cell(line, 0)[0].start for line in range(lines)]
    columns = [found.cell(0, cell)[1].start for cell in range(cells)]
    magnitude = np.abs(found.values)
    reach = float(np.quantile(magnitude, share)) or float(magnitude.max()) or 1.0
    return WeightPicture(
        found.values,
        np.array([*rows, found.rows], dtype=np.float64),
        np.array([*columns, found.columns], dtype=np.float64),
        reach,
    )


def strongest_channel(channels: ChannelStatistics, edges: Float[np.ndarray, " cells+1"], at: float) -> int:
    """Return, of the channels in the cell that holds position ``at`` of an axis, the one with the largest weight.

    Args:
        channels: of the axis.
        edges: borders of the axis' cells.
        at: a position on the axis, e.g. where a click was.
    """
    cell = int(np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(edges) - 2))
    first, last = int(edges[cell]), int(edges[cell + 1])
    return first + int(np.argmax(channels.absmax[first:last]))

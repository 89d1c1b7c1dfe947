"""What numbers a code can stand for: grids of levels, the thresholds between them, and their text forms."""

from __future__ import annotations

from workbench.grids.additive import AdditivePowerGrid
from workbench.grids.binary_coding import BinaryCodingGrid
from workbench.grids.codebook import CodebookGrid
from workbench.grids.floating import FloatGrid
from workbench.grids.grid import Grid, Normalization, ScaleFormat
from workbench.grids.logarithmic import LogGrid
from workbench.grids.power import PowerGrid
from workbench.grids.text import FAMILIES, PRESETS, parse_grid
from workbench.grids.uniform import UniformGrid

__all__ = [
    "FAMILIES",
    "PRESETS",
    "AdditivePowerGrid",
    "BinaryCodingGrid",
    "CodebookGrid",
    "FloatGrid",
    "Grid",
    "LogGrid",
    "Normalization",
    "PowerGrid",
    "ScaleFormat",
    "UniformGrid",
    "parse_grid",
]

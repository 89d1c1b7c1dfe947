"""The live grid's families: between the words of its controls and the grids they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.grids import Grid

#: Bits that the slider offers; grids with other bits are shown as they are (family ``custom``).
BITS = range(2, 9)
#: Smallest exponent that the slider offers.
SMALLEST_EXPONENT = 0.05

#: What each select offers: (value, words).
CHOICES: dict[str, list[tuple[str, str]]] = {
    "family": [
        ("uniform", "uniform"),
        ("power", "power"),
        ("log", "powers of two"),
        ("apot", "additive powers of two"),
        ("k-means", "k-means codebook"),
        ("nf4", "NF4"),
        ("e2m1", "FP4 e2m1"),
        ("e2m3", "FP6 e2m3"),
        ("e3m2", "FP6 e3m2"),
        ("e4m3", "FP8 e4m3"),
        ("e5m2", "FP8 e5m2"),
        ("mxfp4", "MXFP4"),
        ("mxfp6-e2m3", "MXFP6 e2m3"),
        ("mxfp6-e3m2", "MXFP6 e3m2"),
        ("mxfp8-e4m3", "MXFP8 e4m3"),
        ("mxfp8-e5m2", "MXFP8 e5m2"),
        ("nvfp4", "NVFP4"),
    ],
    "rounding": [("power", "in power domain"), ("nearest", "nearest level")],
    "range": [("narrow", "symmetric, narrow"), ("full", "symmetric, full"), ("asymmetric", "with zero point")],
    "granularity": [
        ("tensor", "tensor"),
        ("channel", "output channel"),
        ("group:128", "group of 128"),
        ("group:64", "group of 64"),
        ("group:32", "group of 32"),
        ("group:16", "group of 16"),
    ],
    "scale_rule": [
        ("absmax", "absmax × clip"),
        ("mse", "best clip per group"),
        ("percentile:99.9", "99.9th percentile"),
        ("percentile:99", "99th percentile"),
    ],
}


def catalogue_grids() -> dict[str, Grid]:
    """Return the grids whose levels only Python knows, by the key that the browser looks up.

    Families with bits have a key for each (``log:4``); formats with a name have the name alone.
    """
    from workbench.grids import PRESETS, AdditivePowerGrid, LogGrid, parse_grid

    grids: dict[str, Grid] = {}
    for bits in BITS:
        grids[f"log:{bits}"] = LogGrid(bits=bits)
        grids[f"apot:{bits}"] = AdditivePowerGrid(bits=bits)
    for name in PRESETS:
        grids[name] = parse_grid(name)
    return grids


def grid_of(state: Mapping[str, Any], fitted: Callable[[int], Grid], custom: Grid | None = None) -> Grid:
    """Return the grid that the controls describe.

    Args:
        state: ``family``, ``bits``, ``exponent``, ``rounding``, ``range``.
        fitted: gives the k-means codebook with so many bits.
        custom: the grid of the family ``custom``.

    Raises:
        GridError: the controls describe no grid.
    """
    from workbench.grids import AdditivePowerGrid, LogGrid, PowerGrid, UniformGrid, parse_grid

    family, bits = state["family"], state["bits"]
    if family == "uniform":
        return UniformGrid(bits=bits, range=state["range"])
    if family == "power":
        return PowerGrid(bits=bits, exponent=state["exponent"], rounding=state["rounding"])
    if family == "log":
        return LogGrid(bits=bits)
    if family == "apot":
        return AdditivePowerGrid(bits=bits)
    if family == "k-means":
        return fitted(bits)
    if family == "custom" and custom is not None:
        return custom
    return parse_grid(family)


def state_of(grid: Grid, fitted: Mapping[Grid, int] | None = None) -> dict[str, Any]:
    """Return what the controls show for a grid: ``family`` and the parameters that it fixes.

    Args:
        grid: any grid; one that the controls cannot describe has the family ``custom``.
        fitted: k-means codebooks and their bits.
    """
    from workbench.grids import PRESETS, AdditivePowerGrid, LogGrid, PowerGrid, UniformGrid

    if fitted and grid in fitted:
        return {"family": "k-means", "bits": fitted[grid]}
    if str(grid) in PRESETS:
        return {"family": str(grid)}
    if grid.bits in BITS:
        if isinstance(grid, UniformGrid):
            return {"family": "uniform", "bits": grid.bits, "range": grid.range}
        if isinstance(grid, PowerGrid) and grid.signed and grid.exponent >= SMALLEST_EXPONENT:
            return {"family": "power", "bits": grid.bits, "exponent": grid.exponent, "rounding": grid.rounding}
        if grid == LogGrid(bits=grid.bits):
            return {"family": "log", "bits": grid.bits}
        if isinstance(grid, AdditivePowerGrid):
            return {"family": "apot", "bits": grid.bits}
    return {"family": "custom"}

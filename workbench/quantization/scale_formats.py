"""The number formats that a scale is stored in, and how each rounds.

A format stores the *unit* of a grid, not its full scale: the step of an integer grid (absmax / 127), the scale that
multiplies raw e2m1 values (absmax / 6). ``unit_count(grid)`` says how many units reach from 0 to the full scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids.grid import Grid

#: Bits of one stored scale in each format.
SCALE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "e8m0": 8, "e4m3": 8}

_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_E4M3_MAX = 448.0
_E4M3_SMALLEST = 2.0**-9


@dataclass(frozen=True)
class RoundedScales:
    """Full scales after their units passed through the format that stores them."""

    scale: Float[np.ndarray, "rows groups"]
    """float32, the scale that decoding uses."""
    tensor_scale: float | None = None
    """NVFP4's float32 scale over the whole tensor, which the e4m3 scales multiply; None in every other format."""


def check_scale_format(name: str | None, grid: Grid) -> str:
    """Return the scale format to use: the one named, else the grid's own, else float32.

    Raises:
        QuantizationError: the format is unknown, or cannot hold the signed scales that the grid needs.
    """
    name = name or grid.scale_format or "float32"
    if name not in SCALE_BITS:
        message = f"scale format {name!r} is not known; write one of {', '.join(SCALE_BITS)}"
        raise QuantizationError(message)
    if name == "e8m0" and grid.normalization == "signed":
        message = f"e8m0 scales have no sign, which the full-range grid {grid} needs; use float16, bfloat16 or float32"
        raise QuantizationError(message)
    if grid.fitted and SCALE_BITS[name] < 16:
        message = f"{grid} fits several scales to a group, which {name} cannot hold; use float16, bfloat16 or float32"
        raise QuantizationError(message)
    return name


def unit_count(grid: Grid) -> float:
    """Return how many stored units make the full scale (the level 1).

    The raw peak of a float grid (6 for e2m1, 448 for e4m3); the number of steps from 0 to 1 of a uniform grid (7, 8 or
    15 at 4 bits); 1 for every other grid, whose levels have no common unit.

    >>> from workbench.grids import UniformGrid, parse_grid
    >>> unit_count(UniformGrid(bits=4)), unit_count(parse_grid("e2m1"))
    (7.0, 6.0)
    """
    if grid.peak != 1.0:
        return float(grid.peak)
    if grid.family == "uniform":
        return float(round(1.0 / float(grid.levels[-1] - grid.levels[-2])))
    return 1.0


def round_scale(
    scale: Float[np.ndarray, "rows groups"], scale_format: str, units: float, largest: float
) -> RoundedScales:
    """Round full scales to the format that stores their units.

    * ``float32``: the full scale itself, as it is.
    * ``float16``, ``bfloat16``: nearest, ties to even, of float32(scale) / units (llama.cpp's d, for one).
    * ``e8m0``: the power of two 2^(floor(log2 scale) - floor(log2 units)), exponent clamped to [-127, 127]
      (OCP Microscaling Formats v1.0, section 6.3); the weights above the largest level saturate. A grid without a
      unit has its largest level at exactly 2^0, where the floor would cut up to half of every group's range: there the
      power of two is the next one up.
    * ``e4m3``: NVFP4's two levels: float32 ``tensor_scale`` = largest / (448 units), and for each group the nearest
      e4m3 of scale / units / tensor_scale, at least 2^-9 so that small groups do not vanish.

    Args:
        scale: float64 or float32, >= 0, or signed for ``signed`` grids.
        scale_format: a key of ``SCALE_BITS``.
        units: ``unit_count`` of the grid.
        largest: the largest magnitude among the tensor's unclipped scales (only ``e4m3`` asks for it).

    Raises:
        QuantizationError: a scale is too large for the format.

    A group that reaches 6.5 under e2m1 (peak 6): the shared power of two is 1, and 6.5 saturates at 6.

    >>> round_scale(np.array([[6.5]]), "e8m0", 6.0, 6.5).scale
    array([[6.]], dtype=float32)
    """
    with np.errstate(over="ignore"):
        full = np.asarray(scale).astype(np.float32)
    if not np.isfinite(full).all():
        message = "a scale overflows float32: the weights are larger than 3.4e38; divide them first"
        raise QuantizationError(message)
    if scale_format == "float32":
        return RoundedScales(full)
    if scale_format == "e8m0":
        return RoundedScales((_power_of_two(full, units) * units).astype(np.float32))
    if scale_format == "e4m3":
        return _two_level(full, units, largest)
    with np.errstate(over="ignore"):
        stored = (full / np.float32(units)).astype(np.float16 if scale_format == "float16" else ml_dtypes.bfloat16)
    stored = stored.astype(np.float64)
    if not np.isfinite(stored).all():
        worst = float(np.abs(full).max()) / units
        message = f"a scale of {worst:.4g} overflows {scale_format}; store the scales as bfloat16 or float32"
        raise QuantizationError(message)
    return RoundedScales((stored * units).astype(np.float32))


def _power_of_two(full: np.ndarray, units: float) -> np.ndarray:
    """Return the e8m0 unit of each full scale, float64; 0 stays 0 (an all-zero group decodes to zeros either way)."""
    mantissa, exponent = np.frexp(full.astype(np.float64))
    if units == 1.0:
        shared = np.where(mantissa == 0.5, exponent - 1, exponent)
    else:
        shared = exponent - 1 - (np.frexp(units)[1] - 1)
    return np.where(full == 0.0, 0.0, np.ldexp(1.0, np.clip(shared, -127, 127)))


def _two_level(full: np.ndarray, units: float, largest: float) -> RoundedScales:
    """Return e4m3 scales under one float32 scale of the tensor (NVFP4)."""
    tensor_scale = np.float32(largest / (_E4M3_MAX * units))
    if tensor_scale == 0.0:
        return RoundedScales(np.zeros_like(full), float(tensor_scale))
    ratio = full / np.float32(units) / tensor_scale
    magnitude = np.clip(np.abs(ratio), _E4M3_SMALLEST, _E4M3_MAX).astype(_E4M3).astype(np.float64)
    stored = np.where(full == 0.0, 0.0, np.copysign(magnitude, ratio))
    return RoundedScales((stored * float(tensor_scale) * units).astype(np.float32), float(tensor_scale))

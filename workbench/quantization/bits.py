"""Honest bits: everything that must be stored to read the weights back, over the number of weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Int

from workbench.errors import QuantizationError
from workbench.grids.grid import Grid
from workbench.quantization.checks import as_grid
from workbench.quantization.granularity import Granularity, parse_granularity
from workbench.quantization.scale_formats import SCALE_BITS, check_scale_format

#: Bits of a level that was fitted to the tensor, of a second-level scale, and of an offset beside 8-bit scales.
FLOAT32_BITS = 32


@dataclass(frozen=True)
class Storage:
    """Bits that one quantized tensor takes, part by part."""

    weights: int
    """How many weights."""
    codes: int
    """Bits of all codes, packed."""
    scales: int
    """Bits of all scales in their format, with the second-level scale of e4m3 formats."""
    zero_points: int
    """Bits of all zero points (whole codes) or offsets (floats); 0 for symmetric grids."""
    codebook: int
    """Bits of levels fitted to this tensor; 0 for grids that are known by name (NF4, power, ...)."""

    @property
    def total(self) -> int:
        """Bits of everything."""
        return self.codes + self.scales + self.zero_points + self.codebook

    @property
    def bits_per_weight(self) -> float:
        """Bits of everything over the number of weights."""
        return self.total / self.weights


def storage(
    grid: str | Grid,
    granularity: str | Granularity,
    shape: tuple[int, ...],
    scale_format: str | None = None,
    zero_points: Int[np.ndarray, "rows groups"] | None = None,
) -> Storage:
    """Count the bits of a quantized tensor.

    A zero point takes as many bits as a code (AWQ and GPTQ pack it so), more only where one lies outside the codes
    (which takes a clip below 1 on weights of one sign). An offset of a grid without integer zero point is a float, in
    the scale's format, float32 beside 8-bit scales.

    Args:
        grid: the grid, or its text form; ``grid.bits`` is what one packed code takes.
        granularity: what shares a scale, as text or object.
        shape: the tensor's shape, (out, ...) or 1-D.
        scale_format: what a stored scale is; None for the grid's own, else float32.
        zero_points: the actual zero points, when they are known.

    Raises:
        QuantizationError: an empty shape, an unknown granularity or scale format.

    >>> from workbench.grids import parse_grid
    >>> storage(parse_grid("nvfp4"), "group:16", (16, 16))
    Storage(weights=256, codes=1024, scales=160, zero_points=0, codebook=0)
    """
    grid = as_grid(grid)
    count = prod(shape)
    if count < 1:
        message = f"a tensor of shape {tuple(shape)} holds no weights to count bits for"
        raise QuantizationError(message)
    scale_format = check_scale_format(scale_format, grid)
    rows = shape[0] if len(shape) > 1 else 1
    groups = prod(parse_granularity(granularity).scale_shape(rows, count // rows))
    scales = groups * grid.scales_per_group * SCALE_BITS[scale_format] + (FLOAT32_BITS if scale_format == "e4m3" else 0)
    if grid.normalization != "range":
        zeros = 0
    elif grid.integer_zero_point:
        zeros = groups * max(grid.bits, _bits_of(zero_points))
    else:
        zeros = groups * max(SCALE_BITS[scale_format], 16 if scale_format in {"float16", "bfloat16"} else FLOAT32_BITS)
    codebook = FLOAT32_BITS * len(grid.levels) if grid.family == "codebook" else 0
    return Storage(count, count * grid.bits, scales, zeros, codebook)


def bits_per_weight(
    grid: str | Grid, granularity: str | Granularity, shape: tuple[int, ...], scale_format: str | None = None
) -> float:
    """Return the bits per weight of a tensor quantized this way: codes, scales, zero points and codebook.

    Arguments and errors as in ``storage``.

    >>> from workbench.grids import UniformGrid
    >>> bits_per_weight(UniformGrid(bits=4), "group:128", (4096, 4096), "float16")
    4.125
    """
    return storage(grid, granularity, shape, scale_format).bits_per_weight


def _bits_of(zero_points: np.ndarray | None) -> int:
    """Return the bits that hold every zero point: unsigned, or two's complement when some are negative."""
    if zero_points is None or zero_points.size == 0:
        return 0
    least, largest = int(zero_points.min()), int(zero_points.max())
    if least >= 0:
        return largest.bit_length()
    return 1 + max((-least - 1).bit_length(), largest.bit_length())

"""Quantize a weight: tensor in, codes and scales out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from workbench.grids.grid import Grid
from workbench.grids.text import brief_grid
from workbench.quantization.bits import Storage, storage
from workbench.quantization.blocks import row_blocks, rows_of
from workbench.quantization.checks import as_grid
from workbench.quantization.granularity import Granularity, parse_granularity
from workbench.quantization.scale_formats import check_scale_format, unit_count
from workbench.quantization.scales import ScaleRule, check_no_scale_rule, find_scales, parse_scale_rule
from workbench.quantization.source import as_matrix

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class QuantizedTensor:
    """A weight as integer codes, with what it takes to read them back.

    >>> q = quantize(np.array([[1.0, -1.0, 0.25, 3.0]], dtype=np.float32), "uniform:bits=4,range=asymmetric")
    >>> q
    QuantizedTensor('weight', 1x4, uniform:bits=4,range=asymmetric, channel, 1 float32 scale, 13 bits per weight)
    >>> q.codes, q.zero_point
    (array([[ 8,  0,  5, 15]], dtype=uint8), array([[4]], dtype=int32))
    >>> q.storage
    Storage(weights=4, codes=16, scales=32, zero_points=4, codebook=0)
    """

    codes: Int[np.ndarray, "rows columns"]
    """The stored codes on the matrix view, in the smallest integer type that holds the grid's codes."""
    scale: Float[np.ndarray, "rows groups"]
    """float32, the full scale of each group (the weight that level 1 stands for), as its format rounded it."""
    offset: Float[np.ndarray, "rows groups"]
    """float64, where zero lies on the grid's axis; zeros unless the grid is a ``range`` grid."""
    grid: Grid
    granularity: Granularity
    shape: tuple[int, ...]
    """Shape of the tensor; ``dequantize`` restores it."""
    name: str = "weight"
    scale_format: str = "float32"
    """``float32``, ``float16``, ``bfloat16``, ``e8m0`` or ``e4m3``: what one stored scale is."""
    tensor_scale: float | None = None
    """NVFP4's float32 scale of the whole tensor; None in other formats."""
    clip: Float[np.ndarray, "rows groups"] = field(default_factory=lambda: np.ones((1, 1)))
    """The fraction of the group's reach that its scale keeps, as the scale rule chose it."""

    @property
    def zero_point(self) -> Int[np.ndarray, "rows groups"] | None:
        """The code that zero maps to (0 to levels - 1), int32; None unless the grid has integer zero points."""
        if not self.grid.integer_zero_point:
            return None
        return np.rint(self.offset * (len(self.grid.levels) - 1)).astype(np.int32)

    @property
    def stored_scale(self) -> Float[np.ndarray, "rows groups"]:
        """The numbers a file would hold, float32: the step of a uniform grid, the scale of raw float values."""
        unit = unit_count(self.grid)
        if self.tensor_scale is None:
            return (self.scale.astype(np.float64) / unit).astype(np.float32)
        ratio = self.scale.astype(np.float64) / (unit * (self.tensor_scale or 1.0))
        return ratio.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)  # undoes the float32 rounding of the product

    @property
    def group_size(self) -> int:
        """How many consecutive weights of a row share a scale."""
        return self.granularity.group_size(self.codes.shape[1])

    def rows(self, start: int, stop: int) -> Float[np.ndarray, "rows columns"]:
        """Return the float32 weights that rows ``start`` to ``stop`` of the matrix view stand for."""
        from workbench.kernels.encode import decode_rows

        index = self._index(self.codes[start:stop])
        scale, offset = (rows_of(part, start, stop) for part in (self.scale, self.offset))
        return decode_rows(index, self.grid, scale, offset, self.group_size)

    def steps(self, start: int, stop: int) -> Float[np.ndarray, "rows groups"]:
        """Return each group's step in rows ``start`` to ``stop``, float64: abs(scale) times the grid's widest gap."""
        return np.abs(rows_of(self.scale, start, stop).astype(np.float64)) * np.diff(self.grid.levels).max()

    def dequantize(self) -> Float[np.ndarray, "..."]:
        """Return the weights that the codes stand for: float32, in the tensor's own shape."""
        rows, columns = self.codes.shape
        whole = np.empty((rows, columns), dtype=np.float32)
        step = max(1, (1 << 20) // columns)
        for start in range(0, rows, step):
            whole[start : start + step] = self.rows(start, min(start + step, rows))
        return whole.reshape(self.shape)

    @cached_property
    def storage(self) -> Storage:
        """Bits that codes, scales, zero points and codebook take."""
        return storage(self.grid, self.granularity, self.shape, self.scale_format, zero_points=self.zero_point)

    @property
    def bits_per_weight(self) -> float:
        """Bits of everything that is stored, over the number of weights."""
        return self.storage.bits_per_weight

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per scale group: its scale, clip, and zero point or offset where it has one."""
        import pandas as pd

        rows, groups = self.scale.shape
        index = pd.MultiIndex.from_product([range(rows), range(groups)], names=["row", "group"])
        table = {"scale": self.scale.ravel(), "clip": np.broadcast_to(self.clip, self.scale.shape).ravel()}
        if self.zero_point is not None:
            table["zero_point"] = self.zero_point.ravel()
        elif self.grid.normalization == "range":
            table["offset"] = self.offset.ravel()
        return pd.DataFrame(table, index=index)

    @cached_property
    def _index_of_code(self) -> Int[np.ndarray, " codes"]:
        """Level index of each code, counted from the least one; -1 where no level has the code."""
        codes = self.grid.codes.astype(np.int64)
        table = np.full(int(codes.max() - codes.min()) + 1, -1, dtype=np.int32)
        table[codes - codes.min()] = np.arange(len(codes), dtype=np.int32)
        return table

    def _index(self, codes: Int[np.ndarray, "rows columns"]) -> Int[np.ndarray, "rows columns"]:
        """Return the level index of stored codes: by table, or through ``grid.decode`` for codes that encoders avoid."""
        table = self._index_of_code
        place = codes.astype(np.int64) - int(self.grid.codes.min())
        if place.min() >= 0 and place.max() < len(table):
            index = table[place]
            if index.min() >= 0:
                return index
        return np.searchsorted(self.grid.levels, self.grid.decode(codes))

    def _count_of_scales(self) -> int:
        return self.scale.size

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        whole = self.dequantize()
        return whole if dtype is None else whole.astype(dtype)

    def _repr_html_(self) -> str:
        stored = self.storage
        parts = [("codes", stored.codes), ("scales", stored.scales), ("zero points", stored.zero_points)]
        parts.append(("codebook", stored.codebook))
        bits = " + ".join(f"{part / stored.weights:.4g} {name}" for name, part in parts if part)
        rows = [
            ("weight", f"{escape(self.name)}, {'x'.join(map(str, self.shape)) or 'scalar'}"),
            ("grid", escape(str(self.grid))),
            ("granularity", str(self.granularity)),
            ("scales", f"{self._count_of_scales():,} {self.scale_format}"),
            ("bits per weight", f"{stored.bits_per_weight:.4g} = {bits}"),
        ]
        body = "".join(f"<tr><th style='text-align:left'>{name}</th><td>{value}</td></tr>" for name, value in rows)
        return f"<table class='workbench-quantized-tensor'>{body}</table>"

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        count = self._count_of_scales()
        scales = f"{count:,} {self.scale_format} scale{'s' if count > 1 else ''}"
        return (
            f"{type(self).__name__}({self.name!r}, {shape}, {brief_grid(self.grid)}, {self.granularity}, {scales}, "
            f"{self.bits_per_weight:.4g} bits per weight)"
        )


def quantize(  # noqa: PLR0917 - the six words of the call, in the order they are spoken
    weight: Any,
    grid: Grid | str,
    granularity: str | Granularity = "channel",
    scale: str | ScaleRule = "absmax",
    clip: float = 1.0,
    scale_format: str | None = None,
) -> QuantizedTensor:
    """Quantize a weight to the codes of a grid.

    Reads the weight by row blocks: no float64 or float32 copy of the whole is held.

    Args:
        weight: a ``Layer``, a numpy array (float16, bfloat16, float32, float64) or a torch tensor, of any shape; axis 0
            is the output axis, the others are one row. A 1-D tensor is one row. float64 weights are encoded from
            float64, but scales and dequantized weights are float32.
        grid: a grid or its text form, e.g. ``uniform:bits=4``.
        granularity: ``tensor``, ``channel``, ``group:128``, or an object (``PerGroup(128)``). Block formats (MXFP4: 32,
            NVFP4: 16) need their ``group:`` here.
        scale: ``absmax``, ``percentile:99.9``, ``mse`` (best clip of each group), or a rule object
            (``GivenScale(scales)`` takes ready-made ones). A binary coding fits its own scales: it takes the default.
        clip: fraction of the rule's scale to keep, above 0 and at most 1.
        scale_format: ``float32``, ``float16``, ``bfloat16``, ``e8m0`` or ``e4m3``; None takes the grid's own (block
            formats name one), else float32.

    Raises:
        QuantizationError: NaN or infinite weights (the message names the layer and how many), an empty or
            non-floating-point tensor, an unknown granularity or rule, a clip out of range, a scale that overflows.
        GridError: the grid's text form cannot be read.

    >>> from workbench.grids import UniformGrid
    >>> weight = np.array([[0.7, -0.2, 0.04, 0.0]], dtype=np.float32)
    >>> q = quantize(weight, UniformGrid(bits=4))
    >>> q.codes
    array([[ 7, -2,  0,  0]], dtype=int8)
    >>> q.dequantize()
    array([[ 0.7, -0.2,  0. ,  0. ]], dtype=float32)
    """
    from workbench.kernels.encode import encode_rows

    grid = as_grid(grid)
    granularity = parse_granularity(granularity)
    scale_format = check_scale_format(scale_format, grid)
    if grid.fitted:
        from workbench.quantization.binary_coding import quantize_binary

        check_no_scale_rule(grid, scale, clip)
        return quantize_binary(weight, grid, granularity, scale_format=scale_format)  # pyright: ignore[reportArgumentType]
    matrix = as_matrix(weight)
    found = find_scales(matrix, grid, granularity, parse_scale_rule(scale), clip=clip, scale_format=scale_format)
    rows, columns = matrix.weights.shape
    stored = grid.codes.astype(code_dtype(grid))
    codes = np.empty((rows, columns), dtype=stored.dtype)
    size = granularity.group_size(columns)
    for start, block in row_blocks(matrix.weights):
        stop = start + len(block)
        scales, offsets = (rows_of(part, start, stop) for part in (found.scale, found.offset))
        codes[start:stop] = stored[encode_rows(block, grid, scales, offsets, size)]
    return QuantizedTensor(
        codes=codes,
        scale=found.scale,
        offset=found.offset,
        grid=grid,
        granularity=granularity,
        shape=matrix.shape,
        name=matrix.name,
        scale_format=scale_format,
        tensor_scale=found.tensor_scale,
        clip=found.clip,
    )


def code_dtype(grid: Grid) -> np.dtype:
    """Return the smallest integer type that holds every code of a grid: unsigned unless codes are negative."""
    least, largest = int(grid.codes.min()), int(grid.codes.max())
    kinds = (np.uint8, np.uint16, np.uint32) if least >= 0 else (np.int8, np.int16, np.int32)
    return next(np.dtype(kind) for kind in kinds if np.iinfo(kind).min <= least and largest <= np.iinfo(kind).max)

"""The workbench's own checkpoints: packed codes of any grid, with the settings of each layer in ``config.json``.

``quantization_config`` is ``{"quant_method": "workbench", "version": 1, "layers": {name: settings}}``. A layer ``L`` is

- ``L.weight.codes``, uint8 (rows, bytes): dense codes of ``bits`` bits along each row of the matrix view;
- ``L.weight.scale``: one stored scale for each group, in ``scale_format``;
- ``L.weight.zero_point``, uint8: whole zero points, one dense stream; or ``L.weight.offset``, floating point;
- ``L.weight.codebook``: the levels of a fitted codebook;
- ``L.weight.alphas`` and ``L.weight.biases`` of a binary coding, instead of scale and offset.

Layers read as float32 by rows, the very numbers that ``QuantizedTensor.dequantize`` gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.dtypes import FLOAT32
from workbench.checkpoints.layer import Weights
from workbench.checkpoints.prequantized.codes import composed
from workbench.checkpoints.prequantized.workbench_codes import (
    SCALE_DTYPES,
    full_scales,
    packed_bytes,
    unpack_rows,
)
from workbench.errors import CheckpointError
from workbench.grids import BinaryCodingGrid, CodebookGrid, Grid, parse_grid

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

#: The word of ``quant_method``.
METHOD = "workbench"
#: Version of the layout that this module reads.
VERSION = 1
#: Parts of a layer, by the end of their names.
PARTS = ("codes", "scale", "zero_point", "offset", "codebook", "alphas", "biases")


@dataclass(frozen=True, eq=False)
class WorkbenchRows(Weights):
    """Rows of a quantized layer, decoded when asked."""

    name: str
    shape: tuple[int, int]
    settings: Mapping[str, Any]
    parts: Mapping[str, StoredTensor]
    dtype: np.dtype = FLOAT32

    @cached_property
    def grid(self) -> Grid:
        """The layer's grid; the levels of a fitted codebook come from their tensor."""
        if "codebook" in self.parts:
            return CodebookGrid(tuple(float(level) for level in self.parts["codebook"].read().reshape(-1)))
        return parse_grid(str(self.settings["grid"]))

    @cached_property
    def bits(self) -> int:
        """Bits of a packed code."""
        return self.grid.bits

    @cached_property
    def group_size(self) -> int:
        """How many consecutive weights of a row share a scale."""
        return group_size(str(self.settings["granularity"]), self.shape[1])

    @cached_property
    def scale_shape(self) -> tuple[int, int]:
        """Rows and columns of the scales."""
        if self.settings["granularity"] == "tensor":
            return (1, 1)
        return (self.shape[0], ceil(self.shape[1] / self.group_size))

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return the grid codes of rows ``start`` to ``stop``, int32."""
        width = packed_bytes(self.shape[1], self.bits)
        packed = self.parts["codes"].elements(start * width, stop * width).reshape(-1, width)
        return unpack_rows(packed, self.bits, self.shape[1], signed=int(self.grid.codes.min()) < 0)

    def scale(self, start: int, stop: int) -> np.ndarray:
        """Return the full scales of rows ``start`` to ``stop``, float32; the one of the tensor where all share it."""
        given = self._of_rows("scale", start, stop)
        settings = self.settings
        return full_scales(given, settings["scale_format"], float(settings["units"]), settings.get("tensor_scale"))

    def offset(self, start: int, stop: int) -> np.ndarray:
        """Return the offsets of rows ``start`` to ``stop``, float64."""
        if "zero_point" in self.parts:
            groups, bits = self.scale_shape, int(self.settings["zero_bits"])
            signed = bool(self.settings.get("zero_signed"))
            stream = self.parts["zero_point"].read().reshape(1, -1)
            whole = unpack_rows(stream, bits, prod(groups), signed=signed).reshape(groups)
            rows = whole if groups[0] == 1 and self.shape[0] != 1 else whole[start:stop]
            return rows / (len(self.grid.levels) - 1)
        if "offset" in self.parts:
            return self._of_rows("offset", start, stop).astype(np.float64)
        shape = self.scale_shape
        return np.zeros((1 if shape[0] == 1 else stop - start, shape[1]))

    def _of_rows(self, part: str, start: int, stop: int, depth: int = 1) -> np.ndarray:
        rows, groups = self.scale_shape
        if rows == 1:
            start, stop = 0, 1
        found = self.parts[part].elements(start * groups * depth, stop * groups * depth)
        return found.reshape(stop - start, groups, depth) if depth > 1 else found.reshape(stop - start, groups)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Decode rows ``start`` to ``stop``."""
        if start >= stop or 0 in self.shape:
            return np.empty((max(0, stop - start), self.shape[1]), dtype=np.float32)
        codes = self.codes(start, stop)
        if isinstance(self.grid, BinaryCodingGrid):
            from workbench.kernels.binary_coding import decode_groups

            alphas, biases = self.binary_parts(start, stop)
            return decode_groups(codes.astype(np.uint8), self.group_size, alphas, biases)
        from workbench.kernels.encode import decode_rows

        return decode_rows(
            self._index(codes), self.grid, self.scale(start, stop), self.offset(start, stop), self.group_size
        )

    def binary_parts(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return alphas and biases of a binary coding, float32."""
        bits = self.grid.bits
        alphas = self._of_rows("alphas", start, stop, bits).astype(np.float32)
        biases = self._of_rows("biases", start, stop).astype(np.float32)
        return np.ascontiguousarray(alphas.reshape(*biases.shape, bits)), np.ascontiguousarray(biases)

    def _index(self, codes: np.ndarray) -> np.ndarray:
        """Return the level index of codes; codes that encoders avoid (minus zero) go through ``grid.decode``."""
        found = self._index_of_code[codes - self._least]
        if found.min() >= 0:
            return found
        return np.searchsorted(self.grid.levels, self.grid.decode(codes)).astype(np.int32)

    @cached_property
    def _least(self) -> int:
        return -(1 << (self.bits - 1)) if int(self.grid.codes.min()) < 0 else 0

    @cached_property
    def _index_of_code(self) -> np.ndarray:
        table = np.full(1 << self.bits, -1, dtype=np.int32)
        table[self.grid.codes - self._least] = np.arange(len(self.grid.codes), dtype=np.int32)
        return table


def group_size(granularity: str, columns: int) -> int:
    """Return how many weights of a row share a scale.

    Raises:
        ValueError: the text is no granularity.
    """
    if granularity in {"tensor", "channel"}:
        return columns
    word, _, size = granularity.partition(":")
    if word != "group" or not size.isdecimal() or int(size) < 1:
        message = f"granularity {granularity!r} is not known"
        raise ValueError(message)
    return min(int(size), columns)


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield the layers of a checkpoint that the workbench wrote.

    Raises:
        CheckpointError: a version that is not known, or a layer whose parts are missing or do not fit.
    """
    if settings.get("version") != VERSION:
        message = (
            f"its codes are laid out as version {settings.get('version')!r} of the workbench's format, and this "
            f"workbench reads version {VERSION}: update it"
        )
        raise CheckpointError(message)
    layers = settings.get("layers")
    if not isinstance(layers, Mapping):
        message = "its quantization settings list no layers"
        raise CheckpointError(message)
    for name, own in layers.items():
        parts = {part: tensors[key] for part in PARTS if (key := f"{name}.weight.{part}") in tensors}
        if not isinstance(own, Mapping) or "codes" not in parts:
            message = f"layer {name!r} of its quantization settings has no codes among its tensors"
            raise CheckpointError(message)
        rows = view(name, own, parts)
        shape = tuple(int(side) for side in own["shape"])
        word = f"{METHOD}-{rows.grid.family}{rows.grid.bits}"
        entry = composed(name, rows, shape, word, list(parts.values()))
        yield entry, {tensor.name for tensor in parts.values()}


def view(name: str, settings: Mapping[str, Any], parts: Mapping[str, StoredTensor]) -> WorkbenchRows:
    """Return the rows of one layer, after checking that its parts fit together.

    Raises:
        CheckpointError: see above.
    """
    shape = tuple(int(side) for side in settings["shape"])
    rows, columns = (int(side) for side in settings["matrix"])
    if not shape or min(shape) < 1 or min(rows, columns) < 1 or rows * columns != prod(shape):
        message = f"layer {name!r} has the impossible shape {shape} as {rows} rows of {columns}"
        raise CheckpointError(message)
    matrix = (rows, columns)
    found = WorkbenchRows(name, matrix, settings, parts)
    groups = prod(found.scale_shape)
    due: dict[str, int] = {"codes": matrix[0] * packed_bytes(matrix[1], found.bits)}
    if isinstance(found.grid, BinaryCodingGrid):
        due |= {"alphas": groups * found.bits, "biases": groups}
    else:
        if settings["scale_format"] not in SCALE_DTYPES:
            message = f"layer {name!r} has scales in the format {settings['scale_format']!r}, which is not known"
            raise CheckpointError(message)
        due["scale"] = groups
        if found.grid.normalization == "range":
            whole = "zero_bits" in settings
            due["zero_point" if whole else "offset"] = (
                packed_bytes(groups, int(settings["zero_bits"])) if whole else groups
            )
    for part, count in due.items():
        if part not in parts or parts[part].size != count:
            held = parts[part].size if part in parts else 0
            message = f"layer {name!r} of shape {shape} on {found.grid} needs {count:,} numbers of {part}, not {held:,}"
            raise CheckpointError(message)
    kind = parts["codes"].dtype
    if kind != np.uint8:
        message = f"the codes of layer {name!r} are packed in bytes, not {kind}"
        raise CheckpointError(message)
    return found

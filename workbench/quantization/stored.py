"""A ``QuantizedTensor`` as the arrays and settings that a file holds, and back: bit for bit, and as tight as its bits say.

The layout is that of ``checkpoints.prequantized.workbench_format``, which reads rows of it without this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.checkpoints.prequantized.workbench_codes import SCALE_DTYPES, full_scales, pack_rows
from workbench.checkpoints.prequantized.workbench_format import WorkbenchRows, view
from workbench.checkpoints.tensors import ArrayTensor
from workbench.grids import BinaryCodingGrid, CodebookGrid
from workbench.quantization.binary_coding import BinaryCodedTensor
from workbench.quantization.granularity import parse_granularity
from workbench.quantization.quantize import QuantizedTensor, code_dtype
from workbench.quantization.scale_formats import unit_count

#: Types that offsets, alphas and fitted levels may be stored in, the smallest first.
_FLOATS = (np.dtype(np.float16), SCALE_DTYPES["bfloat16"], np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class StoredParts:
    """What a file holds of one quantized tensor."""

    arrays: dict[str, np.ndarray]
    """By part: ``codes``, ``scale``, ``zero_point`` or ``offset``, ``codebook``, ``alphas`` and ``biases``."""
    settings: dict[str, Any]
    """Plain numbers and texts: grid, granularity, shape, matrix, scale format, ..."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def to_stored(quantized: QuantizedTensor) -> StoredParts:
    """Return the arrays and settings that ``from_stored`` reads back to the same tensor.

    Scales are stored in the tensor's own format where that gives back the very same float32 numbers (it does unless a
    method changed them afterwards), else as float32.

    >>> from workbench.quantization.quantize import quantize
    >>> q = quantize(np.array([[0.7, -0.2, 0.04, 0.0]], dtype=np.float32), "uniform:bits=4")
    >>> parts = to_stored(q)
    >>> parts.arrays["codes"].tolist(), parts.arrays["scale"].tolist(), parts.settings["grid"]
    ([[231, 0]], [[0.699999988079071]], 'uniform:bits=4')
    """
    grid = quantized.grid
    arrays = {"codes": pack_rows(quantized.codes, grid.bits)}
    settings: dict[str, Any] = {
        "grid": str(grid),
        "granularity": str(quantized.granularity),
        "shape": list(quantized.shape),
        "matrix": list(quantized.codes.shape),
    }
    if isinstance(quantized, BinaryCodedTensor):
        settings["scale_format"] = quantized.scale_format
        kind = SCALE_DTYPES.get(quantized.scale_format, np.dtype(np.float32))
        arrays["alphas"] = _exactly(quantized.alphas, kind)
        arrays["biases"] = _exactly(quantized.bias, kind)
        return StoredParts(arrays, settings)
    if isinstance(grid, CodebookGrid) and grid.family == "codebook":
        arrays["codebook"] = _exactly(grid.levels, np.dtype(np.float32))
        settings["grid"] = "codebook"
    units = unit_count(grid)
    arrays["scale"], settings["scale_format"] = _scale(quantized, units)
    settings["units"] = units
    if settings["scale_format"] == "e4m3":
        settings["tensor_scale"] = quantized.tensor_scale
    if grid.normalization == "range":
        _add_offsets(quantized, arrays, settings)
    return StoredParts(arrays, settings)


def _scale(quantized: QuantizedTensor, units: float) -> tuple[np.ndarray, str]:
    """Return the scales as they are stored, and the format that they are stored in."""
    word = quantized.scale_format
    if word in SCALE_DTYPES:
        if word == "e8m0":
            with np.errstate(divide="ignore"):
                exponent = np.log2(quantized.scale.astype(np.float64) / units)
            stored = np.where(np.isfinite(exponent), np.clip(np.rint(exponent), -127, 127) + 127, 0).astype(np.uint8)
        else:
            with np.errstate(over="ignore"):
                stored = quantized.stored_scale.astype(SCALE_DTYPES[word])
        tensor_scale = quantized.tensor_scale if word == "e4m3" else None
        if np.array_equal(full_scales(stored, word, units, tensor_scale), quantized.scale):
            return stored, word
    return quantized.scale.astype(np.float32), "full"


def _add_offsets(quantized: QuantizedTensor, arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    """Add zero points as a dense stream of whole codes, or offsets in the smallest type that keeps them."""
    zeros = quantized.zero_point
    last = len(quantized.grid.levels) - 1
    if zeros is not None and np.array_equal(zeros / last, quantized.offset):
        least, largest = int(zeros.min()), int(zeros.max())
        signed = least < 0
        needed = max((-least - 1).bit_length(), largest.bit_length()) + 1 if signed else largest.bit_length()
        bits = max(quantized.grid.bits, needed)
        if bits <= 16:
            arrays["zero_point"] = pack_rows(zeros.reshape(1, -1), bits)[0]
            settings |= {"zero_bits": bits, "zero_signed": signed}
            return
    kind = SCALE_DTYPES.get(quantized.scale_format, np.dtype(np.float32))
    arrays["offset"] = _exactly(quantized.offset, kind)


def _exactly(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Return the values in a type if it keeps all of them exactly, else in the first wider one that does."""
    for candidate in (kind, *(wider for wider in _FLOATS if wider.itemsize > kind.itemsize)):
        if candidate not in _FLOATS:
            continue
        with np.errstate(over="ignore"):
            narrow = values.astype(candidate)
        if np.array_equal(narrow.astype(np.float64), values.astype(np.float64)):
            return narrow
    return values.astype(np.float64)


def from_stored(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], name: str = "weight") -> QuantizedTensor:
    """Return the tensor that ``to_stored`` took apart.

    Raises:
        CheckpointError: the parts do not fit together.
    """
    rows = view(name, settings, {part: ArrayTensor(part, np.asarray(array)) for part, array in arrays.items()})
    return from_view(rows)


def from_view(rows: WorkbenchRows) -> QuantizedTensor:
    """Return the whole tensor behind the rows of a workbench checkpoint: its codes, scales and offsets."""
    count = rows.shape[0]
    grid = rows.grid
    granularity = parse_granularity(str(rows.settings["granularity"]))
    shape = tuple(int(side) for side in rows.settings["shape"])
    codes = rows.codes(0, count).astype(code_dtype(grid))
    word = str(rows.settings["scale_format"])
    if isinstance(grid, BinaryCodingGrid):
        from workbench.quantization.binary_coding import assemble_binary

        alphas, biases = rows.binary_parts(0, count)
        return assemble_binary(codes, alphas, biases, grid, granularity, shape, rows.name, word)
    return QuantizedTensor(
        codes=codes,
        scale=rows.scale(0, count),
        offset=rows.offset(0, count),
        grid=grid,
        granularity=granularity,
        shape=shape,
        name=rows.name,
        scale_format="float32" if word == "full" else word,
        tensor_scale=rows.settings.get("tensor_scale"),
    )

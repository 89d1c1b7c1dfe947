"""compressed-tensors checkpoints (llm-compressor, vLLM): packed integers, plain int8 and float8, NVFP4, MXFP4/6/8.

weight = (code - zero) * scale, with the scale per tensor, per channel, per group of columns, or per block. What a layer is
made of shows in its tensors; the configuration settles what shapes leave open (github.com/vllm-project/compressed-tensors).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.dtypes import is_float8
from workbench.checkpoints.prequantized.codes import (
    E2M3,
    BlockScale,
    PackedCodes,
    ScaledRows,
    StoredCodes,
    composed,
    packed_words,
    scale_reader,
    unpack,
)
from workbench.checkpoints.prequantized.float8 import WORDS, block_of
from workbench.checkpoints.prequantized.nvfp4 import decode_fp4
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

_REFUSED_FORMATS = ("marlin-24", "sparse-bitmask", "sparse-24-bitmask")


@dataclass(frozen=True, eq=False)
class _PackedZeros:
    """Zero points packed into words along the rows of outputs: (words, groups)."""

    tensor: StoredTensor
    bits: int
    scale: BlockScale

    def __call__(self, start: int, stop: int) -> np.ndarray:
        groups = self.scale.grid[1]
        first = start - start % 32  # 32 codes fill whole words
        low, high = first * self.bits // 32, packed_words(stop, self.bits)
        words = self.tensor.elements(low * groups, high * groups).reshape(-1, groups)
        codes = unpack(words.T, self.bits, stop - first)[:, start - first :].T.astype(np.int16) - (1 << (self.bits - 1))
        if self.scale.column_groups is not None:
            return codes[:, self.scale.column_groups.read()]
        return codes if groups == 1 else np.repeat(codes, self.scale.block[1], axis=1)[:, : self.scale.matrix[1]]


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield the compressed layers.

    Raises:
        CheckpointError: the format is a sparse one, or the tensors of a layer do not fit together.
    """
    sparsity = settings.get("sparsity_config")
    formats = [settings.get("format"), sparsity.get("format") if isinstance(sparsity, Mapping) else None]
    for form in formats:
        if form in _REFUSED_FORMATS:
            message = f"its weights are compressed-tensors in the sparse format {form}, which the workbench cannot decode; open a dense version"
            raise CheckpointError(message)
    for name, tensor in tensors.items():
        layer = name.rsplit(".", 1)[0]
        if name.endswith(".weight_packed"):
            parts = _parts(layer, tensors)
            entry = (
                _packed_bytes(layer, tensor, parts)
                if tensor.dtype == np.uint8
                else _packed_integers(layer, tensor, parts, settings)
            )
            yield entry, {f"{layer}.{part}" for part in parts} | {name}
        elif name.endswith(".weight") and (tensor.dtype == np.int8 or is_float8(tensor.dtype)):
            parts = _parts(layer, tensors)
            yield _plain_codes(layer, tensor, parts, settings), {f"{layer}.{part}" for part in parts} | {name}


def _parts(layer: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    names = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale")
    found = {part: tensors[f"{layer}.{part}"] for part in names if f"{layer}.{part}" in tensors}
    if "weight_scale" not in found:
        message = f"compressed-tensors layer {layer!r} lacks its weight_scale"
        raise CheckpointError(message)
    return found


def _packed_bytes(layer: str, packed: StoredTensor, parts: Mapping[str, StoredTensor]) -> Entry:
    """Decode NVFP4 (float8 scales under one global scale), MXFP4 and MXFP6 (power-of-two scales)."""
    scale, factor = parts["weight_scale"], parts.get("weight_global_scale")
    if (
        len(packed.shape) != 2
        or len(scale.shape) != 2
        or scale.shape[0] != packed.shape[0]
        or "weight_zero_point" in parts
    ):
        message = f"compressed-tensors layer {layer!r} is packed in a way that is not known"
        raise CheckpointError(message)
    if factor is not None and is_float8(scale.dtype) and packed.shape[1] * 2 == scale.shape[1] * 16:
        return decode_fp4(layer, packed, scale, "nvfp4", factor=factor, divide=True)
    if scale.dtype == np.uint8 and packed.shape[1] * 2 == scale.shape[1] * 32:
        return decode_fp4(layer, packed, scale, "mxfp4")
    if scale.dtype == np.uint8 and packed.shape[1] * 4 == scale.shape[1] * 32 * 3:
        rows, columns = packed.shape[0], scale.shape[1] * 32
        factors = BlockScale(scale, (rows, columns), (1, 32), scale_reader(scale))
        codes = PackedCodes(packed, packed.shape[1], 6, columns, table=E2M3)
        return composed(
            layer, ScaledRows((rows, columns), codes, factors), (rows, columns), "mxfp6-e2m3", [packed, scale]
        )
    message = f"the scales of compressed-tensors layer {layer!r} fit neither NVFP4 nor MXFP4 nor MXFP6"
    raise CheckpointError(message)


def _packed_integers(
    layer: str, packed: StoredTensor, parts: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> Entry:
    """Decode ``pack-quantized``: signed codes plus 2^(bits-1), as a bit stream in 32-bit words along each row."""
    rows, columns = _shape(layer, parts)
    width = packed.shape[-1]
    bits = _bits(layer, columns, width, settings)
    if len(packed.shape) != 2 or packed.shape[0] != rows or bits is None:
        message = f"the packed codes of compressed-tensors layer {layer!r} do not fit its {rows}x{columns} weights"
        raise CheckpointError(message)
    scale = _scale(layer, (rows, columns), parts, settings)
    zero = None
    if "weight_zero_point" in parts:
        zeros = parts["weight_zero_point"]
        groups = scale.grid[1]
        if zeros.dtype == np.int32 and zeros.shape == (packed_words(rows, bits), groups) and scale.block[0] == 1:
            zero = _PackedZeros(zeros, bits, scale)
        else:
            zero = _plain_zero(layer, zeros, scale)
    codes = PackedCodes(packed, width, bits, columns, offset=1 << (bits - 1))
    weights = ScaledRows((rows, columns), codes, scale, zero)
    used = [packed, *parts.values()]
    return composed(layer, weights, (rows, columns), f"int{bits}-packed", used)


def _shape(layer: str, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
    stored = parts.get("weight_shape")
    if stored is not None and stored.size == 2 and stored.dtype.kind in "iu":
        rows, columns = (int(side) for side in stored.read().reshape(-1))
        if rows >= 0 and columns >= 0:
            return rows, columns
    message = f"compressed-tensors layer {layer!r} lacks its weight_shape of two sizes"
    raise CheckpointError(message)


def _weight_settings(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    listed = (
        [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    return [weights for weights in listed if isinstance(weights, Mapping)]


def _bits(layer: str, columns: int, width: int, settings: Mapping[str, Any]) -> int | None:
    """Return the bits that fill ``width`` words with ``columns`` codes.

    Raises:
        CheckpointError: the codes are packed without crossing words, as versions before 0.14 did for odd bit counts.
    """
    configured = [weights.get("num_bits") for weights in _weight_settings(settings)]
    for bits in [*configured, 4, 8, 2, 3, 5, 6, 7, 1]:
        if type(bits) is int and 1 <= bits <= 8 and packed_words(columns, bits) == width:
            return bits
    for bits in configured:
        if type(bits) is int and 1 <= bits <= 8 and ceil(columns / (32 // bits)) == width:
            message = f"compressed-tensors layer {layer!r} packs {bits}-bit codes in the layout of an old version; compress the model again"
            raise CheckpointError(message)
    return None


def _plain_codes(
    layer: str, tensor: StoredTensor, parts: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> Entry:
    """Decode ``int-quantized``, ``float-quantized``, ``naive-quantized`` and MXFP8: one stored number for each weight."""
    if len(tensor.shape) != 2:
        message = f"compressed-tensors layer {layer!r} has {len(tensor.shape)} dimensions; 2 are known"
        raise CheckpointError(message)
    rows, columns = tensor.shape
    scale = _scale(layer, (rows, columns), parts, settings)
    zeros = parts.get("weight_zero_point")
    zero = _plain_zero(layer, zeros, scale) if zeros is not None else None
    weights = ScaledRows((rows, columns), StoredCodes(tensor, columns), scale, zero)
    mx = parts["weight_scale"].dtype == np.uint8
    word = "mxfp8-e4m3" if mx else WORDS.get(tensor.dtype.name, "int8-scaled")
    return composed(layer, weights, (rows, columns), word, [tensor, *parts.values()])


def _scale(
    layer: str, matrix: tuple[int, int], parts: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> BlockScale:
    stored = parts["weight_scale"]
    groups = parts.get("weight_g_idx")
    if groups is not None:
        values = groups.read()
        if (values < 0).all():
            groups = None  # -1 throughout: not in activation order
        elif values.shape != (matrix[1],) or values.min() < 0 or values.max() >= stored.shape[-1]:
            message = (
                f"the weight_g_idx of compressed-tensors layer {layer!r} does not fit its {stored.shape[-1]} groups"
            )
            raise CheckpointError(message)
    block = _group_block(matrix, stored, settings) or block_of(layer, matrix, 1, stored, settings)
    scale = BlockScale(stored, matrix, block, scale_reader(stored), groups)
    scale.check(1, layer)
    return scale


def _group_block(matrix: tuple[int, int], stored: StoredTensor, settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the block of a scale per group of columns, where the configured group size fits."""
    for weights in _weight_settings(settings):
        size = weights.get("group_size")
        if type(size) is int and size > 0 and stored.shape == (matrix[0], ceil(matrix[1] / size)):
            return (1, size)
    return None


def _plain_zero(layer: str, zeros: StoredTensor, scale: BlockScale) -> Any:
    if zeros.size != scale.tensor.size or zeros.dtype.kind not in "iuf":
        message = f"the zero points of compressed-tensors layer {layer!r} do not fit its scales"
        raise CheckpointError(message)
    return BlockScale(zeros, scale.matrix, scale.block, column_groups=scale.column_groups).rows

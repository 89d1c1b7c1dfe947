"""NVFP4 and FP4 block formats: E2M1 codes, two to a byte, low half first, with a scale for each 16 or 32 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.names import layer_name
from workbench.checkpoints.prequantized.codes import E2M1, BlockScale, PackedCodes, ScaledRows, composed, scale_reader

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield NVFP4 weights as NVIDIA ModelOpt stores them: ``weight`` (uint8), ``weight_scale``, ``weight_scale_2``.

    A weight is E2M1 * weight_scale * weight_scale_2 (ModelOpt, ``NVFP4QTensor.dequantize``).
    """
    for name, tensor in tensors.items():
        if not name.endswith(".weight") or tensor.dtype != np.uint8 or len(tensor.shape) != 2:
            continue
        scale, factor = tensors.get(name + "_scale"), tensors.get(name + "_scale_2")
        if scale is not None and factor is not None and factor.size == 1:
            entry = decode_fp4(layer_name(name), tensor, scale, "nvfp4", factor=factor)
            yield entry, {name, scale.name, factor.name}


def decode_fp4(
    name: str,
    packed: StoredTensor,
    scale: StoredTensor,
    word: str,
    *,
    factor: StoredTensor | None = None,
    divide: bool = False,
) -> Entry:
    """Make the entry of one E2M1 weight: packed (out, in / 2), scale (out, in / group)."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    group = max(1, columns // max(1, scale.shape[-1]))
    factors = BlockScale(scale, (rows, columns), (1, group), scale_reader(scale))
    factors.check(1, name)
    codes = PackedCodes(packed, packed.shape[1], 4, columns, table=E2M1)
    weights = ScaledRows((rows, columns), codes, factors, factor=factor, divide=divide)
    parts = [packed, scale] + ([factor] if factor is not None else [])
    return composed(name, weights, (rows, columns), word, parts)

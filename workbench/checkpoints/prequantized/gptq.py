"""GPTQ checkpoints (AutoGPTQ, GPTQModel): codes packed along the inputs, zero points along the outputs.

weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i]. Format v1 stores zero - 1, format v2 the zero
itself (GPTQModel, ``checkpoint_format``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.dtypes import FLOAT32
from workbench.checkpoints.layer import Weights
from workbench.checkpoints.prequantized.codes import composed, packed_words, unpack
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, eq=False)
class GPTQRows(Weights):
    """Rows of outputs, decoded from columns of the packed tensor."""

    shape: tuple[int, int]
    bits: int
    qweight: StoredTensor
    scales: StoredTensor
    qzeros: StoredTensor
    g_idx: StoredTensor | None
    group_size: int
    zero_shift: int
    """Added to the stored zero points: 1 in format v1."""
    dtype: np.dtype = FLOAT32

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Decode rows ``start`` to ``stop``."""
        inputs = self.shape[1]
        codes = unpack(self.qweight.columns(start, stop).T, self.bits, inputs)
        groups = self.g_idx.read() if self.g_idx is not None else np.arange(inputs) // self.group_size
        scales = self.scales.columns(start, stop).astype(np.float32).T[:, groups]
        zeros = self._zeros(start, stop).T[:, groups]
        return np.ascontiguousarray((codes.astype(np.float32) - zeros) * scales)

    def _zeros(self, start: int, stop: int) -> np.ndarray:
        """Return the zero points of outputs ``start`` to ``stop``: (groups, outputs)."""
        first = start - start % 32  # 32 codes fill whole words, whatever their bits
        words = self.qzeros.columns(first * self.bits // 32, packed_words(stop, self.bits))
        zeros = unpack(words, self.bits, stop - first)[:, start - first :].astype(np.int32) + self.zero_shift
        return (zeros & ((1 << self.bits) - 1)).astype(np.float32)


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield the layers of a GPTQ checkpoint.

    Raises:
        CheckpointError: the bits are not 2, 3, 4 or 8, the packing is another runtime's, or tensors do not fit together.
    """
    found = [name for name in tensors if name.endswith(".qweight")]
    if not found:
        return
    form = str(settings.get("checkpoint_format") or ("marlin" if settings.get("is_marlin_format") else "gptq")).lower()
    if form not in {"gptq", "gptq_v2"}:
        message = f"its GPTQ weights are packed for {form}; open a version in the format gptq or gptq_v2"
        raise CheckpointError(message)
    for name in found:
        yield _entry(name.removesuffix(".qweight"), tensors, settings, 1 if form == "gptq" else 0)


def _entry(
    layer: str, tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any], zero_shift: int
) -> tuple[Entry, set[str]]:
    try:
        qweight, scales, qzeros = (tensors[f"{layer}.{part}"] for part in ("qweight", "scales", "qzeros"))
    except KeyError as missing:
        message = f"GPTQ layer {layer!r} lacks {str(missing.args[0])!r}"
        raise CheckpointError(message) from None
    g_idx = tensors.get(f"{layer}.g_idx")
    bits = _bits(layer, settings)
    if len(qweight.shape) != 2 or len(scales.shape) != 2 or {qweight.dtype.itemsize, qzeros.dtype.itemsize} != {4}:
        message = f"GPTQ layer {layer!r} must have two-dimensional qweight, scales and qzeros, packed in 32-bit words"
        raise CheckpointError(message)
    outputs = qweight.shape[1]
    inputs = g_idx.size if g_idx is not None else qweight.shape[0] * 32 // bits
    groups = scales.shape[0]
    group_size = settings.get("group_size", -1)
    group_size = group_size if type(group_size) is int and group_size > 0 else inputs
    fits = (
        qweight.shape[0] == packed_words(inputs, bits)
        and scales.shape[1] == outputs
        and qzeros.shape == (groups, packed_words(outputs, bits))
        and (g_idx is not None or groups == -(-inputs // group_size))
    )
    if not fits:
        shapes = ", ".join(
            f"{part.name.rsplit('.', 1)[-1]} {'x'.join(map(str, part.shape))}" for part in (qweight, scales, qzeros)
        )
        message = f"the parts of GPTQ layer {layer!r} do not fit together at {bits} bits: {shapes}"
        raise CheckpointError(message)
    if g_idx is not None:
        _check_groups(layer, g_idx, groups)
    weights = GPTQRows((outputs, inputs), bits, qweight, scales, qzeros, g_idx, group_size, zero_shift)
    parts = [qweight, scales, qzeros] + ([g_idx] if g_idx is not None else [])
    return composed(layer, weights, (outputs, inputs), f"gptq-int{bits}", parts), {part.name for part in parts}


def _check_groups(layer: str, g_idx: StoredTensor, groups: int) -> None:
    values = g_idx.read()
    if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() >= groups)):
        message = f"GPTQ layer {layer!r} refers to groups outside its {groups}"
        raise CheckpointError(message)


def _bits(layer: str, settings: Mapping[str, Any]) -> int:
    """Return a layer's bits; GPTQModel's ``dynamic`` rules may set them layer by layer."""
    bits = settings.get("bits")
    dynamic = settings.get("dynamic")
    if isinstance(dynamic, Mapping):
        for pattern, rule in dynamic.items():
            if pattern.startswith("-:") or not isinstance(rule, Mapping):
                continue
            if re.match(pattern.removeprefix("+:"), layer):
                bits = rule.get("bits", bits)
                break
    if type(bits) is not int or bits not in _BITS:
        message = f"GPTQ layer {layer!r} has {bits!r} bits; 2, 3, 4 and 8 are known"
        raise CheckpointError(message)
    return bits
